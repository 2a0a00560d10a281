"""Feed tokens to a saved package as an app does: the prompt in blocks, then one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.mil.evaluator import Arithmetic, Evaluator
from mobilemoe_mlx.mil.program import Package
from mobilemoe_mlx.numerics.values import LayerValues, Trace
from mobilemoe_mlx.verify.custom_layer_evaluator import CustomLayerEvaluator
from mobilemoe_mlx.verify.custom_layer_package import CustomLayerModel


class Call(NamedTuple):
    """One call of the model: `length` tokens from `start`."""

    start: int
    length: int
    is_decode: bool  # which function, where there are two


class Step(NamedTuple):
    """What one call computed for its tokens, padding left out."""

    layers: list[LayerValues]
    logits: np.ndarray  # float32 [rows, vocabulary]: the last token's, or every token's


class Session(Protocol):
    """A package with its key/value cache."""

    args: ModelArgs
    context: int  # positions in the cache
    block: int  # most tokens of one call
    # Biased scores, float32 [positions, experts] a layer, by which it selects instead of its own
    # where it can; None: its own.
    scores: list[np.ndarray] | None

    def reset(self) -> None:
        """Empty the cache."""

    def feed(self, tokens: Sequence[int], position: int, is_decode: bool) -> Step:
        """Run one call: `tokens`, one to `block` of them, the first at `position`."""


def plan(prompt: int, total: int, block: int, context: int) -> Iterator[Call]:
    """Calls for `prompt` tokens in blocks and then one by one up to `total`.

    A block may not reach beyond the context, padding included: one that would starts earlier, with
    tokens that the cache has already, which gives the same rows again (docs/ios.md).
    """
    for start in range(0, prompt, block):
        yield _block(start, min(start + block, prompt), block, context)
    for position in range(prompt, total):
        yield Call(position, 1, is_decode=True)


def _block(start: int, end: int, block: int, context: int) -> Call:
    start = min(start, context - block)
    return Call(start, end - start, is_decode=False)


def chat_plan(total: int, block: int, context: int) -> Iterator[Call]:
    """Calls as turns of a chat make them: blocks of all lengths from any position, single tokens.

    The first token goes to `decode`, the second to `prefill` by itself.
    """
    yield Call(0, 1, is_decode=True)
    position = 1
    for length in itertools.cycle((1, block, block * 2 // 3, block // 3, block - 1)):
        if position >= total:
            return
        end = min(position + max(1, length), total)
        yield _block(position, end, block, context)
        if end < total:
            yield Call(end, 1, is_decode=True)
        position = end + 1


def run(session: Session, tokens: Sequence[int], calls: Iterable[Call]) -> tuple[Trace, list[int]]:
    """Feed `tokens` by `calls` to an empty cache; -> (values, tokens whose logits they are)."""
    session.reset()
    total = len(tokens)
    filled: list[LayerValues] = []
    logits: dict[int, np.ndarray] = {}
    for call in calls:
        end = call.start + call.length
        step = session.feed(tokens[call.start : end], call.start, call.is_decode)
        if not filled:
            filled = [_empty(layer, total) for layer in step.layers]
        for whole, part in zip(filled, step.layers, strict=True):
            for destination, values in zip(_arrays(whole), _arrays(part), strict=True):
                destination[call.start : end] = values
        logits |= {end - len(step.logits) + i: row for i, row in enumerate(step.logits)}
    rows = sorted(logits)
    return Trace(filled, np.stack([logits[row] for row in rows])), rows


def _arrays(values: LayerValues) -> tuple[np.ndarray, ...]:
    return values.hidden, values.scores, values.experts


def _empty(values: LayerValues, tokens: int) -> LayerValues:
    return LayerValues(*(np.zeros((tokens, *a.shape[1:]), a.dtype) for a in _arrays(values)))


class MLProgramSession:
    """The ML Program form: `prefill` and `decode` on one state."""

    def __init__(self, package: Package, args: ModelArgs, arithmetic: Arithmetic) -> None:
        signature = package.signatures[names.PREFILL]
        self.args = args
        self.block = signature.inputs[names.TOKENS].shape[1]
        self.context = signature.states[names.KEY_CACHE].shape[2]
        self._all_logits = signature.outputs[names.LOGITS].shape[1] > 1
        self._evaluator = Evaluator(package, arithmetic)
        self._state: dict[str, np.ndarray] = {}
        self.scores: list[np.ndarray] | None = None

    def reset(self) -> None:
        """Empty the cache."""
        self._state = self._evaluator.new_state(names.DECODE)

    def feed(self, tokens: Sequence[int], position: int, is_decode: bool) -> Step:
        """Run `decode` for one token, or `prefill` for a block padded with tokens of any kind."""
        count = len(tokens)
        function = names.DECODE if is_decode else names.PREFILL
        rows = 1 if is_decode else self.block
        padding = [(position + 31 * i) % self.args.vocab_size for i in range(rows - count)]
        inputs = {
            names.TOKENS: np.array([[*tokens, *padding]], np.int32),
            names.POSITION: np.array([position], np.int32),
        }
        if not is_decode and not self._all_logits:
            inputs[names.LENGTH] = np.array([count], np.int32)
        instead = {
            names.scores(index): scores[position : position + rows]
            for index, scores in enumerate(self.scores or ())
        }
        taps: dict[str, np.ndarray] = {}

        def keep(name: str, value: np.ndarray) -> None:
            if name.endswith(("_hidden", "_scores", "_selection")):
                taps[name] = value[:count].copy()

        outputs = self._evaluator.run(function, inputs, self._state, keep, instead)
        logits = outputs[names.LOGITS][0].astype(np.float32)
        layers = [
            LayerValues(
                hidden=taps[names.hidden(index)],
                scores=taps[names.scores(index)],
                experts=taps[names.selection(index)].argmax(-1),
            )
            for index in range(self.args.num_hidden_layers)
        ]
        return Step(layers, logits[:count])


class CustomLayerSession:
    """The custom-layer form: caches go in, and the rows that come out are copied into them."""

    def __init__(self, package: CustomLayerModel, args: ModelArgs) -> None:
        self.args = args
        self.block = package.inputs[names.TOKENS].sizes[0][1]
        self.context = package.inputs[names.KEY_CACHE].shape[2]
        self.scores: list[np.ndarray] | None = None  # not heard: each layer routes by itself
        self._cache_shape = package.inputs[names.KEY_CACHE].shape
        self._evaluator = CustomLayerEvaluator(package)
        self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        self._keys, self._values = (np.zeros(self._cache_shape, np.float32) for _ in range(2))

    def feed(self, tokens: Sequence[int], position: int, is_decode: bool) -> Step:
        """Run the model, one function for all calls, for these tokens, which need no padding."""
        taps: dict[str, np.ndarray] = {}

        def keep(name: str, value: np.ndarray) -> None:
            if name.endswith(("_hidden", "_scores", "_experts")):
                taps[name] = value

        outputs = self._evaluator.run(
            {
                names.TOKENS: np.array(tokens, np.int32),
                names.POSITION: np.array([position], np.int32),
                names.KEY_CACHE: self._keys,
                names.VALUE_CACHE: self._values,
            },
            keep,
        )
        end = position + len(tokens)
        self._keys[:, :, position:end] = outputs[names.NEW_KEYS]
        self._values[:, :, position:end] = outputs[names.NEW_VALUES]
        layers = [
            LayerValues(
                hidden=taps[names.hidden(index)],
                scores=taps[names.scores(index)],
                experts=taps[names.experts(index)],
            )
            for index in range(self.args.num_hidden_layers)
        ]
        return Step(layers, outputs[names.LOGITS])
