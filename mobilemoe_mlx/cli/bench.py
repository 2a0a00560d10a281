"""`mobilemoe bench MODEL`: speed and memory of engines and rivals, measured in turns."""

from __future__ import annotations

import argparse
import re
import sys

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.engine_arguments import add_expert_memory_argument
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.png_pictures import check_can_draw

EXAMPLES = (
    "mobilemoe bench runs/quickstart/training/qat/model --contexts 256 --rounds 1",
    "mobilemoe bench runs/quickstart/training/qat/model --engine cpu:int8 --engine mlx "
    "--contexts 64,256 --rounds 1 --json runs/bench.json --picture runs/bench.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model", help="a checkpoint folder, a Hugging Face repository id or an ONNX export"
    )
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="NAME[:MORE]",
        help="cpu:int8, cpu:int16, cpu:exact, mlx, or onnx:FOLDER, an ONNX export of the model; "
        "may be repeated (default: all that run here)",
    )
    parser.add_argument(
        "--rivals",
        type=lambda text: text.split(","),
        default=[],
        metavar="NAME,NAME",
        help="torch (our PyTorch reference, slow: no cache, float32) and llama.cpp (another "
        "architecture of the same shape with random weights) take turns with the engines "
        "(default: none, since they take long)",
    )
    parser.add_argument(
        "--llama-python",
        metavar="FILE",
        help="the Python that has llama-cpp-python and gguf (default: the one that runs this)",
    )
    parser.add_argument(
        "--contexts",
        type=_lengths,
        default="256,1k,4k,8k",
        metavar="N,N",
        help="tokens of the prompts (default %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument(
        "--threads", type=int, help="of the engine cpu: 1 to 16 (default: one per CPU)"
    )
    add_expert_memory_argument(parser)
    parser.add_argument(
        "--most-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="leave out what would take longer, once (default %(default)s)",
    )
    parser.add_argument("--compare", metavar="FILE", help="show ratios to this earlier --json FILE")
    parser.add_argument("--picture", metavar="FILE", help="draw the figures into this PNG file")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_json(args.json)
    if args.picture is not None:
        check_can_draw("--picture", args.picture)
    from mobilemoe_mlx.bench.measure import bench
    from mobilemoe_mlx.bench.results import read_results
    from mobilemoe_mlx.bench.table import as_text
    from mobilemoe_mlx.checkpoint.hub import resolve
    from mobilemoe_mlx.cpu_kernel.library import default_threads

    before = None if args.compare is None else read_results(args.compare)
    results = bench(
        resolve(args.model),
        args.engine,
        rivals=args.rivals,
        llama_python=args.llama_python,
        prompts=args.contexts,
        rounds=args.rounds,
        threads=default_threads() if args.threads is None else args.threads,
        expert_memory=args.expert_memory,
        most_seconds=args.most_seconds,
        say=_say,
    )
    write_json(args.json, results.to_dict())
    if not prints_json(args.json):
        print(as_text(results, before))
    if args.picture is not None:
        from mobilemoe_mlx.bench.picture import draw

        files.write(files.user_path(args.picture), draw(results))


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)


def _lengths(text: str) -> list[int]:
    found = [re.fullmatch(r"(\d+)(k?)", part) for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"'{text}' is not like 256,1k,4k")
    return [int(m[1]) * (1024 if m[2] else 1) for m in found if m is not None]
