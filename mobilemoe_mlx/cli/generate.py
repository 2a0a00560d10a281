"""`mobilemoe generate MODEL`: continue a prompt from the command line, a file or stdin."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from typing import TYPE_CHECKING

from mobilemoe_mlx.cli.engine_arguments import add_engine_arguments, engine_options
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.prompt_file import add_prompt_file_argument, read_prompt
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.generation_options import GenerationOptions

if TYPE_CHECKING:
    from mobilemoe_mlx.engines import Engine
    from mobilemoe_mlx.prompt_tokenizer import PromptTokenizer
    from mobilemoe_mlx.tokenizer import ChatTokenizer

EXAMPLES = (
    'mobilemoe generate runs/quickstart/training/qat/model --prompt "import os"',
    'mobilemoe generate runs/quickstart/training/qat/model --prompt "def " --temperature 0.7 '
    "--top-k 40 --seed 1",
    'mobilemoe generate runs/quickstart/training/qat/model --prompt "class A:" --max-tokens '
    "40 --json runs/answer.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", help="a checkpoint folder or a Hugging Face repository id")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", metavar="TEXT", help="text to continue, as it is (default: standard input)"
    )
    add_prompt_file_argument(prompt)
    add_generation_arguments(parser)
    add_engine_arguments(parser)
    add_json_argument(parser)


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of GenerationOptions, for each command that generates."""
    default = GenerationOptions()
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=default.max_tokens,
        help="longest answer (default %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=default.temperature,
        help="0 always takes the likeliest token (default %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=default.top_p,
        help="sample among the likeliest tokens with this probability together (default all)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=default.top_k,
        help="sample among this many likeliest tokens (default all)",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        default=default.min_p,
        help="sample among tokens at least this probable, relative to the likeliest (default all)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=default.repetition_penalty,
        help="above 1: avoid the last 20 tokens (default %(default)s, none)",
    )
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be repeated",
    )


def generation_options(args: argparse.Namespace) -> GenerationOptions:
    """The options that `add_generation_arguments` parsed; raises UserError for a senseless one."""
    return GenerationOptions(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=tuple(args.stop),
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from mobilemoe_mlx.generate import (
        Statistics,
        encode_prompt,
        stream,
        tokens_left,
    )

    check_json(args.json)
    options = generation_options(args)
    if args.prompt is not None:
        text = args.prompt
    elif args.prompt_file is None and sys.stdin.isatty():
        raise UserError("There is no prompt: give --prompt TEXT or --prompt-file FILE, or pipe it.")
    else:
        text = read_prompt("-" if args.prompt_file is None else args.prompt_file)
    if not text:
        raise UserError("The prompt is empty: there is nothing to continue.")
    engine, tokenizer = open_and_tell(args)
    session = engine.session()
    prompt = encode_prompt(tokenizer, text)
    room = tokens_left(session, len(prompt))
    if room < options.max_tokens:
        print(
            f"The prompt has {len(prompt)} of the context's {session.context} tokens: at most "
            f"{room} are generated, not {options.max_tokens}.",
            file=sys.stderr,
        )
    answer = ""
    for item in stream(session, tokenizer, prompt, options):
        if isinstance(item, Statistics):
            record = {"prompt": text, "answer": answer, **dataclasses.asdict(item)}
            if not prints_json(args.json) and not answer.endswith("\n"):
                print(flush=True)
            write_json(args.json, record)
            print(item, file=sys.stderr)
        elif item.text:
            answer += item.text
            if not prints_json(args.json):
                print(item.text, end="", flush=True)


def open_and_tell(args: argparse.Namespace) -> tuple[Engine, PromptTokenizer | ChatTokenizer]:
    """The engine and tokenizer of `args`, with word of it where standard error is a terminal."""
    from mobilemoe_mlx.generate import open_for_prompts

    options = engine_options(args)
    if not sys.stderr.isatty():
        return open_for_prompts(args.model, **options)
    print(f"Loading {args.model} ...", file=sys.stderr)
    start = time.perf_counter()
    both = open_for_prompts(args.model, **options)
    print(
        f"Loaded {both[0].describe()} in {time.perf_counter() - start:.1f} s.",
        file=sys.stderr,
    )
    return both
