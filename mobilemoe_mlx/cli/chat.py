"""`mobilemoe chat MODEL`: talk with an instruction-tuned checkpoint, on a terminal or by a pipe."""

from __future__ import annotations

import argparse
import io
import sys

from mobilemoe_mlx.chat_commands import HELP
from mobilemoe_mlx.cli.generate import add_generation_arguments, generation_options

EXAMPLES = (
    "mobilemoe chat runs/quickstart/training/qat/model",
    'mobilemoe chat runs/quickstart/training/qat/model --system "Be brief." --temperature '
    "0.7 --seed 1",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = HELP
    parser.add_argument("model", help="a checkpoint folder or a Hugging Face repository id")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the first turn")
    add_generation_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from mobilemoe_mlx import chat
    from mobilemoe_mlx.checkpoint.load_save import load

    options = generation_options(args)
    model, tokenizer = load(args.model)
    conversation = chat.Conversation(model, tokenizer, options, args.system)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A line with other bytes is then refused by itself, and the next one is still read.
        sys.stdin.reconfigure(errors="surrogateescape")
    if sys.stdin.isatty():
        print(HELP, file=sys.stderr)
    chat.run(conversation, _read_line, sys.stdout, sys.stderr)


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
