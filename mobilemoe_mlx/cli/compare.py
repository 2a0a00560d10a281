"""`mobilemoe compare`: two models, or one in two engines; gradients and training in PyTorch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.adapter_argument import adapters, add_adapter_argument
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.prompt_file import add_prompt_file_argument, read_prompt
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.png_pictures import check_can_draw

DTYPES = ("float32", "float16", "bfloat16")
_RANDOM_TOKENS = 128  # that gradients are compared on
_GREEDY_TOKENS = 32
_CONTEXT = 128

# Options that only some comparisons read -> those. None, or False, where they are not given.
_FORWARD, _BACKWARD, _TRAINING = "the forward pass", "--backward", "--train-steps"
_READ_BY = {
    "--context": (_TRAINING,),
    "--data": (_TRAINING,),
    "--qat": (_BACKWARD, _TRAINING),
    "--capacity-factor": (_BACKWARD, _TRAINING),
    "--greedy-tokens": (_FORWARD,),
    "--prompt": (_FORWARD, _BACKWARD),
    "--prompt-file": (_FORWARD, _BACKWARD),
    "--tokens": (_FORWARD, _BACKWARD),
    "--seed": (_FORWARD, _BACKWARD),
}


EXAMPLES = (
    'mobilemoe compare runs/quickstart/training/qat/model --prompt "import os" --output '
    "runs/compare",
    "mobilemoe compare runs/quickstart/training/sft/model runs/quickstart/training/qat/model "
    "--engine-b cpu:int8",
    "mobilemoe compare runs/quickstart/training/sft/model --backward --tokens 64",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Exit status: 0 within the tolerance, 1 beyond it, 2 for a mistake in the call."
    parser.add_argument(
        "checkpoint",
        metavar="A",
        help="a model folder or Hugging Face repo id, an ONNX folder or a .mlpackage",
    )
    parser.add_argument(
        "other",
        metavar="B",
        nargs="?",
        help="another, which A is compared with (default: A itself, in PyTorch)",
    )
    for side in "ab":
        parser.add_argument(
            f"--engine-{side}",
            metavar="NAME[:PRECISION]",
            help=f"what computes {side.upper()}: mlx, torch, cpu:exact, cpu:int16, cpu:int8, onnx, "
            "coreml (default: by what it is, mlx for a checkpoint; docs/numerics.md)",
        )
    add_adapter_argument(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="of MLX (float32)")
    parser.add_argument("--torch-dtype", choices=DTYPES, help="of PyTorch (as --dtype)")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", metavar="TEXT", help="the text to run on")
    add_prompt_file_argument(text)
    text.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="random tokens to run on (128, or fewer where a context is shorter)",
    )
    parser.add_argument("--seed", type=int, help="of the random tokens (0)")
    parser.add_argument(
        "--greedy-tokens",
        type=int,
        metavar="N",
        help=f"how far both continue the text by the most likely token ({_GREEDY_TOKENS})",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="largest error of the logits (float32: max 1e-4; others: docs/numerics.md; two "
        "different models: none)",
    )
    parser.add_argument(
        "--output",
        type=files.user_path,
        metavar="DIR",
        help="write compare.json and compare.png into this folder",
    )
    add_json_argument(parser)
    training = parser.add_argument_group("instead of the forward pass")
    what = training.add_mutually_exclusive_group()
    what.add_argument(
        "--backward", action="store_true", help="gradients of every parameter, the worst first"
    )
    what.add_argument(
        "--train-steps", type=int, metavar="N", help="train for N steps in both, on --data"
    )
    training.add_argument(
        "--data", metavar="PATH", help="texts to train on: a .txt, .md, .py or .jsonl, or a folder"
    )
    training.add_argument("--context", type=int, metavar="N", help=f"tokens of a row ({_CONTEXT})")
    training.add_argument(
        "--qat", action="store_true", help="compute with the INT4 form of the weights"
    )
    training.add_argument(
        "--capacity-factor",
        type=float,
        metavar="X",
        help="an expert takes the first tokens of a row, X times its share, and drops the others, "
        "as training with routing.capacity_factor does (default: none is dropped)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; 1 when beyond the tolerance."""
    check_json(args.json)
    _check_options(args)
    output = None
    if args.output is not None:
        check_can_draw("--output")
        output = files.output_folder(args.output)
    if args.prompt_file is not None:
        args.prompt = read_prompt(args.prompt_file)
    if args.backward or args.train_steps is not None:
        return _compare_training(args, output)
    from mobilemoe_mlx.checkpoint.hub import resolve
    from mobilemoe_mlx.compare.compare_models import compare_models
    from mobilemoe_mlx.compare.open_side import kind_of
    from mobilemoe_mlx.compare.table import as_text

    models = [resolve(name) for name in (args.checkpoint, args.other) if name is not None]
    if any(kind_of(model) == "a Core ML package" for model in models):
        from mobilemoe_mlx.mlpackage.interrupts import import_coremltools

        import_coremltools()
    report = compare_models(
        *models,
        engine_a=args.engine_a,
        engine_b=args.engine_b,
        adapters=adapters(args),
        dtype=args.dtype,
        torch_dtype=args.torch_dtype,
        prompt=args.prompt,
        num_tokens=args.tokens,
        seed=args.seed or 0,
        greedy_tokens=_GREEDY_TOKENS if args.greedy_tokens is None else args.greedy_tokens,
        tolerance=args.tolerance,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    return _tell(args, output, report, as_text(report), "compare")


def _check_options(args: argparse.Namespace) -> None:
    """Raise UserError for an option that the comparison asked for would not read."""
    what = _BACKWARD if args.backward else _FORWARD if args.train_steps is None else _TRAINING
    for name, readers in _READ_BY.items():
        value = getattr(args, name[2:].replace("-", "_"))
        if value is None or value is False or what in readers:
            continue
        if _FORWARD not in readers:
            raise UserError(
                f"{name} belongs to {' or '.join(readers)}: "
                f"{'leave it out, or ask for that' if what == _FORWARD else 'leave it out'}."
            )
        raise UserError(f"{what} does not read {name}: leave it out.")


def _compare_training(args: argparse.Namespace, output: Path | None) -> int:
    if args.adapter:
        raise UserError(
            "--backward and --train-steps take no adapters: fuse them, and compare what comes out."
        )
    if args.other or args.engine_a or args.engine_b:
        raise UserError(
            "--backward and --train-steps compare MLX with PyTorch on one checkpoint: leave out "
            "the second model and the engines."
        )
    from mobilemoe_mlx.checkpoint.hub import resolve
    from mobilemoe_mlx.compare.sequence import check_tolerance, open_for_torch

    folder = resolve(args.checkpoint)
    check_tolerance(args.tolerance)
    checkpoint = open_for_torch(folder)
    dtype: Any = args.dtype or "float32"
    types = {dtype, args.torch_dtype or dtype}
    if "float16" in types:
        raise UserError("Training computes in float32 or bfloat16: choose --dtype from them.")
    if args.capacity_factor is not None and args.capacity_factor <= 0:
        raise UserError(
            f"--capacity-factor {args.capacity_factor:g}: give a number above 0, like 1.5."
        )
    if args.capacity_factor is not None and not checkpoint.args.num_local_experts:
        raise UserError(
            f"{args.checkpoint} is dense and has no experts that could be full: leave out "
            "--capacity-factor."
        )
    if args.backward:
        from mobilemoe_mlx.compare.backward import compare_gradients
        from mobilemoe_mlx.compare.sequence import sequence
        from mobilemoe_mlx.compare.training_tables import gradients_as_text

        count = _RANDOM_TOKENS if args.tokens is None else args.tokens
        tokens = sequence(folder, checkpoint.args, args.prompt, count, args.seed or 0)
        if len(tokens) < 2:
            raise UserError("A sequence of one token has no next one: give two tokens or more.")
        gradients = compare_gradients(
            folder,
            tokens,
            dtype=dtype,
            torch_dtype=args.torch_dtype,
            quantize=args.qat,
            capacity_factor=args.capacity_factor,
            tolerance=args.tolerance,
        )
        return _tell(args, output, gradients, gradients_as_text(gradients), "gradients")
    if types != {"float32"}:
        raise UserError("--train-steps compares in float32: leave --dtype and --torch-dtype out.")
    if args.data is None:
        raise UserError("--train-steps needs texts to train on: --data PATH.")
    context = _CONTEXT if args.context is None else args.context
    if args.train_steps < 1 or not 1 <= context <= checkpoint.args.max_position_embeddings:
        raise UserError(
            f"{args.train_steps} steps of {context} tokens: at least 1 step is needed, and "
            f"this model takes 1 to {checkpoint.args.max_position_embeddings} tokens."
        )
    from mobilemoe_mlx.compare.steps import ROWS, compare_steps, read_batches
    from mobilemoe_mlx.compare.training_tables import steps_as_text
    from mobilemoe_mlx.tokenizer import load_tokenizer

    batches = read_batches(args.data, load_tokenizer(folder), args.train_steps, ROWS, context)
    limit = {} if args.tolerance is None else {"tolerance": args.tolerance}
    steps = compare_steps(
        folder, batches, quantize=args.qat, capacity_factor=args.capacity_factor, **limit
    )
    return _tell(args, output, steps, steps_as_text(steps), "steps")


def _tell(args: argparse.Namespace, output: Path | None, report: Any, text: str, name: str) -> int:
    """Print and write a report, whose files are called `name`; 1 when beyond the tolerance."""
    write_json(args.json, report.to_dict())
    if not prints_json(args.json):
        print(text)
    if output is not None:
        report.write(output)
        written = f"Wrote {output / name}.json and {output / name}.png"
        print(written, file=sys.stderr if prints_json(args.json) else sys.stdout)
    return 0 if report.passed else 1
