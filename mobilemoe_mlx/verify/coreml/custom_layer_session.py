"""Feed tokens to the custom-layer form, whose rows of keys and values the caller copies back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.numerics.values import LayerValues
from mobilemoe_mlx.verify.coreml.custom_layer_evaluator import CustomLayerEvaluator
from mobilemoe_mlx.verify.coreml.custom_layer_model import CustomLayerModel
from mobilemoe_mlx.verify.session import Step


class CustomLayerSession:
    """A `Session` of a custom-layer package: caches go in, and new rows are copied into them."""

    shows_routing: bool = True

    def __init__(self, package: CustomLayerModel, args: ModelArgs) -> None:
        self.args = args
        self.block = package.inputs[names.TOKENS].shape[0]
        self.context = package.inputs[names.KEY_CACHE].shape[2]
        self.scores: list[np.ndarray] | None = None  # ignored: each layer routes by itself
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
