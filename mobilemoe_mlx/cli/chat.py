"""`mobilemoe chat MODEL`: talk with an instruction-tuned checkpoint, on a terminal or by a pipe."""

from __future__ import annotations

import argparse
import io
import sys

from mobilemoe_mlx.chat_commands import HELP
from mobilemoe_mlx.cli.engine_arguments import add_engine_arguments
from mobilemoe_mlx.cli.generate import (
    add_generation_arguments,
    generation_options,
    open_and_tell,
)
from mobilemoe_mlx.errors import UserError

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
    parser.add_argument("--load", metavar="FILE", help="go on with a conversation that /save wrote")
    add_generation_arguments(parser)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; 1 when no message that came by a pipe was answered."""
    from mobilemoe_mlx import chat, conversation_file

    options = generation_options(args)
    messages = [] if args.load is None else conversation_file.load(args.load)
    if messages and messages[0]["role"] == "system" and args.system is not None:
        raise UserError(f"{args.load} has a system message: leave out --system.")
    engine, tokenizer = open_and_tell(args)
    conversation = chat.Conversation(engine, tokenizer, options, args.system)
    if messages:
        conversation.load(messages)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A line with other bytes is then refused by itself, and the next one is still read. The
        # encoding is that of files; the terminal keeps its own.
        encoding = None if sys.stdin.isatty() else "utf-8-sig"
        sys.stdin.reconfigure(encoding=encoding, errors="surrogateescape")
    interactive = sys.stdin.isatty()
    if interactive:
        print(HELP, file=sys.stderr)
    fine = chat.run(conversation, _read_line, sys.stdout, sys.stderr, interactive=interactive)
    return 0 if fine or interactive else 1


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
