"""Entry point of `mobilemoe`: finds the command's file, parses, runs, prints errors plainly."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from mobilemoe_mlx import mlx_on_linux
from mobilemoe_mlx.cli.parser import Parser
from mobilemoe_mlx.errors import UserError, did_you_mean


class Command(NamedTuple):
    """What the list of commands says about one of them."""

    summary: str
    computes: bool  # with MLX, so that a slow BLAS matters


# What people want -> the commands for it. The file of a command's name in this folder has
# `EXAMPLES` (whole command lines, the most telling first), `add_arguments(parser)` and
# `run(args) -> int | None`. Its imports are light, so that every help comes at once: MLX and all
# that imports it are imported in `run`.
GROUPS: dict[str, dict[str, Command]] = {
    "Run a model": {
        "generate": Command("continue a prompt", True),
        "chat": Command("talk with an instruction-tuned checkpoint", True),
        "bench": Command("measure speed and memory of every engine on a checkpoint", True),
        "fuse": Command("make adapters part of a checkpoint, BF16 or INT4", True),
        "convert": Command(
            "change a checkpoint's layout without changing a bit, or round it", True
        ),
    },
    "Train": {
        "quickstart": Command("train, quantise, run and export a tiny model, and report", True),
        "train": Command("run training stages from a recipe", True),
        "finetune": Command("train adapters or weights of a checkpoint on your own data", True),
        "plot": Command("draw a run's loss curves and expert load", False),
        "tokenizer": Command("train a SentencePiece tokenizer", False),
        "corpus": Command("build a corpus from this Python's standard library", False),
    },
    "Ship to a phone": {
        "export": Command("write a Core ML package for iPhone and Mac, with its resources", True),
        "verify": Command("prove that a package computes what its checkpoint does", True),
    },
    "Study": {
        "info": Command(
            "describe a size, a checkpoint, a package: parameters, bytes, FLOPs", False
        ),
        "compare": Command("measure how far two models, engines or exports are apart", True),
        "eval": Command("score a model on benchmarks, whatever engine runs it", True),
        "sensitivity": Command("measure which tensors' rounding to INT4 costs how much", True),
        "scale": Command("ask the scaling law what to build and what to expect", False),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (1 where a check fails, 2 for a user's mistake)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(argv)
        sys.stdout.flush()  # here, so that a full disk or a closed pipe is reported like any other
        return status
    except UserError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("mobilemoe: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except MemoryError as error:
        return _failed(f"there is not enough memory: {error or 'ask for something smaller'}")
    except UnicodeError as error:
        return _failed(f"text that cannot be read or written: {error}")
    except OSError as error:
        _drop_output()
        where = "" if error.filename is None else f"{error.filename}: "
        return _failed(f"{where}{error.strerror or error}")


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command, whose help ends with the command's examples."""
    module = _module(name)
    parser = Parser(
        prog=f"mobilemoe {name}",
        description=COMMANDS[name].summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    _end_with_examples(parser, module.EXAMPLES)
    return parser


def overview() -> str:
    """All commands, grouped by what people want, with an example of each."""
    lines = [
        "MobileMoE in MLX: run, train and export on-device mixtures of experts.",
        "",
        "usage: mobilemoe COMMAND ...        (mobilemoe COMMAND --help: its options and examples)",
    ]
    for title, commands in GROUPS.items():
        lines += ["", title]
        for name, command in commands.items():
            lines += [f"  {name:<11} {command.summary}", f"{'':<14}{_module(name).EXAMPLES[0]}"]
    lines += [
        "",
        "`mobilemoe quickstart` makes the model of the examples, in runs/quickstart. A published",
        "model goes by its repository's name: facebook/MobileMoE-S-QAT.",
    ]
    return "\n".join(lines)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    name = argv[0]
    if name == "--version":
        print(f"mobilemoe-mlx {importlib.metadata.version('mobilemoe-mlx')}")
        return 0
    if name not in COMMANDS:
        raise UserError(
            f"There is no command '{name}'{did_you_mean(name, COMMANDS)}. "
            "`mobilemoe --help` lists them."
        )
    args = command_parser(name).parse_args(argv[1:])
    # That PyTorch is absent is no news: tokenizers are all that is wanted of transformers.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if COMMANDS[name].computes and (advice := mlx_on_linux.prepare()):
        print(f"mobilemoe: {advice}", file=sys.stderr)
    return _module(name).run(args) or 0


def _module(command: str) -> ModuleType:
    return importlib.import_module(f".{command}", __package__)


def _end_with_examples(parser: argparse.ArgumentParser, examples: Sequence[str]) -> None:
    """End the help of `parser` and of its sub-commands with those examples that are theirs."""
    own = [line for line in examples if f"{line} ".startswith(f"{parser.prog} ")] or examples
    lines = "\n".join(f"  {line}" for line in own)
    parser.epilog = f"{parser.epilog}\n\n" if parser.epilog else ""
    parser.epilog += f"examples:\n{lines}".replace("%", "%%")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                child.formatter_class = argparse.RawDescriptionHelpFormatter
                _end_with_examples(child, examples)


def _failed(message: str) -> int:
    print(f"mobilemoe: {message}", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Where standard output takes no more text, let Python not try again while it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
