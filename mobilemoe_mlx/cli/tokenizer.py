"""`mobilemoe tokenizer train FILES...`: a SentencePiece tokenizer of your own text."""

from __future__ import annotations

import argparse
import itertools

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json

EXAMPLES = (
    "mobilemoe tokenizer train runs/quickstart/corpus --vocab-size 2048 --output runs/tokenizer",
    "mobilemoe tokenizer train runs/quickstart/corpus/code.train.jsonl --vocab-size 4096 "
    "--output runs/code-tokenizer",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=["train"], help="what to do")
    parser.add_argument(
        "files", nargs="+", help=".jsonl, .parquet, .txt, .md, .py, or folders of these"
    )
    parser.add_argument(
        "--vocab-size", type=int, required=True, metavar="TOKENS", help="tokens in the vocabulary"
    )
    parser.add_argument("--output", required=True, help="folder of the new tokenizer")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from mobilemoe_mlx.data.corpus_texts import corpus_texts
    from mobilemoe_mlx.tokenizer import train_tokenizer

    check_json(args.json)
    output = files.output_folder(args.output)
    texts = itertools.chain.from_iterable(corpus_texts(file) for file in args.files)
    counts = train_tokenizer(texts, args.vocab_size, output)
    write_json(args.json, {"output": args.output, **counts})
    if not prints_json(args.json):
        print(
            f"{args.output}: {counts['vocab_size']:,} tokens, trained on {counts['texts']:,} texts "
            f"with {counts['characters']:,} characters"
        )
