"""What the CPU engine's precisions and caches change, on a trained checkpoint and held-out text.

Run: python benchmarks/cpu_precisions.py runs/quickstart/training/qat/model runs/quickstart/corpus
Prints, for each against `exact` with a float32 cache (which is itself held against MLX): the KL
divergence of the next token's distribution in nats, how often the likeliest token is the same, the
loss, and how many greedy continuations of 64 tokens are the same text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()

import numpy as np  # noqa: E402

from mobilemoe_mlx.engines import Engine, open_engine  # noqa: E402
from mobilemoe_mlx.errors import UserError  # noqa: E402
from mobilemoe_mlx.tokenizer import encode_text, load_tokenizer  # noqa: E402

WINDOW = 512  # tokens of a text
PROMPT, GREEDY = 32, 64  # tokens

ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("cpu", {"precision": "exact"}),
    "mlx": ("mlx", {}),
    "int16, float32 cache": ("cpu", {"precision": "int16", "cache": "float32"}),
    "int16": ("cpu", {"precision": "int16"}),
    "int16, int8 cache": ("cpu", {"precision": "int16", "cache": "int8"}),
    "int8, float32 cache": ("cpu", {"precision": "int8", "cache": "float32"}),
    "int8": ("cpu", {"precision": "int8"}),
}


def texts(corpus: Path, model: str, count: int) -> Iterator[list[int]]:
    """Windows of held-out documentation and code, in turn, as token ids."""
    tokenizer = load_tokenizer(model)
    files = [(corpus / f"{kind}.heldout.jsonl").open(encoding="utf-8") for kind in ("docs", "code")]
    found = 0
    for line in itertools.chain.from_iterable(zip(*files, strict=False)):
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        tokens = (begin + encode_text(tokenizer, json.loads(line)["text"]))[:WINDOW]
        if len(tokens) > PROMPT:
            yield tokens
            found += 1
        if found == count:
            return


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [tokens, vocabulary]."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def greedy(engine: Engine, prompt: list[int]) -> list[int]:
    """The GREEDY likeliest tokens after `prompt`."""
    session = engine.session()
    logits, answer = session.feed(prompt), []
    while len(answer) < GREEDY:
        answer.append(int(logits[-1].argmax()))
        logits = session.feed(answer[-1:])
    return answer


def main() -> int:
    """Parse the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a trained INT4 checkpoint with a tokenizer")
    parser.add_argument("corpus", type=Path, help="the folder with *.heldout.jsonl")
    parser.add_argument("--texts", type=int, default=40)
    options = parser.parse_args()
    try:
        windows = list(texts(options.corpus, options.model, options.texts))
        engines = {k: open_engine(options.model, name, **o) for k, (name, o) in ENGINES.items()}
    except (UserError, OSError) as error:
        sys.exit(str(error))
    divergence: dict[str, list[np.ndarray]] = {name: [] for name in engines}
    agreement: dict[str, list[np.ndarray]] = {name: [] for name in engines}
    losses: dict[str, list[np.ndarray]] = {name: [] for name in engines}
    same = dict.fromkeys(engines, 0)
    for window in windows:
        wanted = answer = None
        for name, engine in engines.items():
            found = log_softmax(engine.session().feed(window, all_logits=True))
            text = greedy(engine, window[:PROMPT])
            if wanted is None or answer is None:
                wanted, answer = found, text
            divergence[name].append((np.exp(wanted) * (wanted - found)).sum(axis=-1))
            agreement[name].append(wanted.argmax(-1) == found.argmax(-1))
            losses[name].append(-np.take_along_axis(found[:-1], np.array(window[1:])[:, None], 1))
            same[name] += text == answer
    tokens = sum(map(len, windows))
    print(
        f"{len(windows)} texts, {tokens:,} tokens.\n\n"
        "| precision | KL, mean | KL, 99th percentile | same likeliest token | loss, nats | same "
        f"{GREEDY} greedy tokens |\n|---|---|---|---|---|---|"
    )
    for name in engines:
        kl = np.concatenate(divergence[name])
        print(
            f"| {name} | {max(kl.mean(), 0):.1e} | {max(np.quantile(kl, 0.99), 0):.1e} | "
            f"{100 * np.concatenate(agreement[name]).mean():.2f} % | "
            f"{np.concatenate(losses[name]).mean():.4f} | {same[name]} of {len(windows)} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
