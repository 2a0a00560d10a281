"""Feed tokens to the ML Program form: `prefill` and `decode` on one state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.mil.evaluator import Arithmetic, Evaluator
from mobilemoe_mlx.mil.program import Package
from mobilemoe_mlx.numerics.values import LayerValues
from mobilemoe_mlx.verify.session import Step


class CoreOpsSession:
    """A `Session` of a core-ops package, evaluated in one arithmetic."""

    shows_routing: bool = True

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
