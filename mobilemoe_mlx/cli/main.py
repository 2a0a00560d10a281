"""Entry point of `mobilemoe`: finds the command's file, parses, runs, prints errors plainly."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from mobilemoe_mlx.errors import UserError, did_you_mean

# Command -> one line of help. The file of the same name in this folder has `add_arguments(parser)`
# and `run(args) -> int | None`; it is imported only when its command is used.
COMMANDS = {
    "info": "sizes, bytes and FLOPs of a preset or checkpoint",
    "generate": "continue a prompt",
    "chat": "talk with an instruction-tuned checkpoint",
    "train": "run training stages from a recipe",
    "plot": "draw a run's loss curves and expert load",
    "convert": "change a checkpoint's layout, without changing a bit of it",
    "export": "write a Core ML package for iPhone and Mac, with its resources",
    "verify": "prove that a package computes what its checkpoint does",
    "tokenizer": "train a SentencePiece tokenizer",
    "corpus": "build the standard-library corpus",
    "compare": "compare MLX with PyTorch, layer by layer",
    "quickstart": "train, quantise, run and export a tiny model, and report",
}


# What pathlib raises for `~nobody` and for links that lead to themselves.
_PATH_ERRORS = ("Could not determine home directory", "Symlink loop")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (2 for a user's mistake)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="mobilemoe",
        description="MobileMoE in MLX.",
        epilog="\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", help="one of those listed below; `mobilemoe COMMAND --help`")
    if not argv or argv[0].startswith("-"):
        parser.parse_args(argv or ["--help"])
    name = argv[0]
    try:
        if name not in COMMANDS:
            raise UserError(f"There is no command '{name}'{did_you_mean(name, COMMANDS)}.")
        module = importlib.import_module(f".{name}", __package__)
        command = argparse.ArgumentParser(prog=f"mobilemoe {name}", description=COMMANDS[name])
        module.add_arguments(command)
        return module.run(command.parse_args(argv[1:])) or 0
    except UserError as error:
        print(f"mobilemoe: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mobilemoe: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except UnicodeError as error:
        print(f"mobilemoe: text that cannot be read or written: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not str(error).startswith(_PATH_ERRORS):
            raise
        print(f"mobilemoe: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"mobilemoe: {where}{error.strerror or error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
