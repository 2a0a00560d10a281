"""Run two models, or one in two engines, on one sequence, and compare what they compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.checkpoint.check import check_scales
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.compare.comparison import Comparison, compare_traces
from mobilemoe_mlx.compare.greedy import choose, compare_choices, follow
from mobilemoe_mlx.compare.open_side import kind_of, open_side, reads_type
from mobilemoe_mlx.compare.sequence import check_tolerance, sequence
from mobilemoe_mlx.compare.side import Side
from mobilemoe_mlx.compare.vocabulary import check_vocabulary
from mobilemoe_mlx.engines.engine import Adapters
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.numerics.tolerance import COMPARE_LIMITS
from mobilemoe_mlx.numerics.values import PartialTrace
from mobilemoe_mlx.tokenizer_file import open_tokenizer
from mobilemoe_mlx.verify.progress import duration

GREEDY_TOKENS = 32
RANDOM_TOKENS = 128
_TOKENIZER = "tokenizer.json"
_LONG = 10.0  # seconds that a person is told of


def compare_models(
    a: Path,
    b: Path | None = None,
    *,
    engine_a: str | None = None,
    engine_b: str | None = None,
    adapters: Adapters = (),
    dtype: str | None = None,
    torch_dtype: str | None = None,
    prompt: str | None = None,
    num_tokens: int | None = None,
    seed: int = 0,
    greedy_tokens: int = GREEDY_TOKENS,
    tolerance: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare `a` with `b`, each a checkpoint, an ONNX folder or a Core ML package.

    `b`: None for `a` itself, by default in PyTorch. `engine_a`, `engine_b`: see `open_side`;
    `dtype` (None: float32) and `torch_dtype` (None: as `dtype`) are those of "mlx" and "torch"
    where the engine names none, and belong to such a side. `adapters`: folders with weights, added
    to `a`, and to `b` where that is `a`.
    The sequence is `prompt`, tokenised, or `num_tokens` random tokens drawn with `seed` (None:
    RANDOM_TOKENS, or fewer where a side has no room); both continue it by up to `greedy_tokens`.
    `tolerance`: replaces the limit of the coarser side; two different models are judged by it
    alone. `say` hears how long it will take, where that is long. Raises UserError for a side that
    cannot be had or cannot run as asked, for different vocabularies, an empty or over-long
    sequence, weights that are not finite, and numbers out of range.
    """
    check_tolerance(tolerance)
    if greedy_tokens < 0:
        raise UserError(f"{greedy_tokens} greedy tokens: the number must be 0 or more.")
    types = {"mlx": dtype or "float32", "torch": torch_dtype or dtype or "float32"}
    for name in types.values():
        if name not in COMPARE_LIMITS:
            raise UserError(
                f"'{name}' is not a type to compare in{did_you_mean(name, COMPARE_LIMITS)}: "
                f"choose {', '.join(COMPARE_LIMITS)}."
            )
    if b is None and engine_b is None:
        if (kind := kind_of(a)) != "a checkpoint":
            raise UserError(
                f"{a} is {kind}: say what to compare it with, a second model or another engine "
                "(--engine-b)."
            )
        engine_b = "torch"
    asked = {reads_type(a, engine_a), reads_type(b or a, engine_b)}
    if dtype is not None and not asked & ({"mlx"} if torch_dtype else {"mlx", "torch"}):
        raise UserError(
            f"--dtype {dtype} is of MLX and PyTorch, and no side of this comparison would compute "
            "in it: leave it out, or choose such a side (--engine-a, --engine-b)."
        )
    if torch_dtype is not None and "torch" not in asked:
        raise UserError(
            f"--torch-dtype {torch_dtype} is of PyTorch, and no side of this comparison would "
            "compute in it: leave it out, or choose such a side (--engine-b torch)."
        )
    is_same = b is None or b.resolve() == a.resolve()
    sides = (
        open_side(a, engine_a, types, adapters),
        open_side(b or a, engine_b, types, adapters if is_same else ()),
    )
    check_vocabulary(*sides)
    narrow = min(sides, key=lambda side: side.context)
    if num_tokens is None:
        num_tokens = max(1, min(RANDOM_TOKENS, narrow.context - greedy_tokens))
    tokenizer = next((s for s in sides if (s.tokenizer / _TOKENIZER).is_file()), sides[0]).tokenizer
    if prompt is not None and not tokenizer.is_dir():
        raise UserError(
            f"{sides[0].folder} is without {tokenizer.name}, the folder of its resources, in which "
            "its tokenizer is: put that beside it, or run on random tokens (--tokens)."
        )
    tokens = sequence(
        tokenizer,
        sides[0].args,
        prompt,
        num_tokens,
        seed,
        ("this model" if is_same else str(narrow.folder), narrow.context),
    )
    for checkpoint in {s.folder: s.checkpoint for s in sides}.values():
        if checkpoint is not None:
            check_scales(checkpoint)
            check_finite(checkpoint)  # also where no token of this sequence goes
    greedy_tokens = min(greedy_tokens, narrow.context - len(tokens))
    seconds = sum(side.seconds_per_token for side in sides) * (len(tokens) + greedy_tokens)
    if seconds > _LONG:
        say(f"this takes {duration(seconds)}, by its size, on two processor cores")
    return _compare_sides(
        *sides,
        tokens,
        greedy_tokens,
        tolerance,
        piece=lambda token: _piece(tokenizer, token),
        is_judged=is_same or tolerance is not None,
    )


def _piece(tokenizer: Path, token: int) -> str | None:
    if not (tokenizer / _TOKENIZER).is_file():
        return None
    return open_tokenizer(tokenizer).id_to_token(token)


class _Shown(NamedTuple):
    trace: PartialTrace
    chosen: list[int]  # the tokens that continue the sequence
    choices: list[np.ndarray]  # the logits of each choice, [vocabulary]


def _compare_sides(
    a: Side,
    b: Side,
    tokens: list[int],
    count: int,
    tolerance: float | None,
    *,
    piece: Callable[[int], str | None],
    is_judged: bool,
) -> Comparison:
    """Run one side after the other: only one copy of the weights is in memory.

    The first one continues the text, the second follows. One without a cache follows, for it can
    do so in a single call.
    """
    torch_leads = b.has_cache and not a.has_cache
    first, second = (b, a) if torch_leads else (a, b)
    led = _lead(first, tokens, count)
    followed = _follow(second, tokens, led.chosen)
    shown_a, shown_b = (followed, led) if torch_leads else (led, followed)
    greedy = None
    if led.chosen:
        greedy = compare_choices(shown_a.choices, shown_b.choices, count, piece)
    return compare_traces(
        a,
        b,
        shown_a.trace,
        shown_b.trace,
        greedy=greedy,
        tolerance=tolerance,
        is_judged=is_judged,
    )


def _lead(side: Side, tokens: list[int], count: int) -> _Shown:
    run = side.load()
    trace = run.start(tokens)
    chosen, choices = choose(run, trace.logits[-1], count) if count else ([], [])
    mx.clear_cache()
    return _Shown(trace, chosen, choices)


def _follow(side: Side, tokens: list[int], chosen: list[int]) -> _Shown:
    run = side.load()
    trace = run.start(tokens)
    choices = follow(run, trace.logits[-1], chosen, side.has_cache) if chosen else []
    mx.clear_cache()
    return _Shown(trace, chosen, choices)
