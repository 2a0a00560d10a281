"""Run a saved custom-layer package: its layers as coreml/README.md describes them, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.custom import reference as reference
from mobilemoe_mlx.verify.coreml.custom_layer_model import CustomLayerModel, Layer

Watch = Callable[[str, np.ndarray], None]


class CustomLayerEvaluator:
    """Runs a package of `custom_layer_model` with the reference of the contract.

    Arrays between layers are float32, as on the CPU.
    """

    def __init__(self, package: CustomLayerModel) -> None:
        self.package = package
        (self._embedding,) = package.layers_of(contract.EMBEDDING)

    def run(
        self, inputs: Mapping[str, np.ndarray], watch: Watch | None = None
    ) -> dict[str, np.ndarray]:
        """Evaluate the model: its outputs by name.

        `inputs`: exactly the declared ones, with their types and a shape in their ranges. `watch`
        is called with the name and value of each array between layers (`layers_0_hidden`, ...) and
        of the routers' decisions (`layers_0_scores`, `layers_0_experts`,
        `layers_0_expert_weights`). Raises UserError for inputs of another kind, token ids outside
        the vocabulary and positions outside the context.
        """
        self._check(inputs)
        see = watch or (lambda name, array: None)
        # Core ML hands integers on as float32, in which ids and positions are exact.
        values = {name: array.astype(np.float32) for name, array in inputs.items()}
        for layer in self.package.layers:
            results = self._compute(layer, [values[name] for name in layer.inputs], see)
            for name, result in zip(layer.outputs, results, strict=True):
                values[name] = result
                see(name, result)
        for name, feature in self.package.outputs.items():
            if not feature.takes(values[name]):
                raise ValueError(f"output {name} is {_text(values[name])}, declared {feature}")
        return {name: values[name] for name in self.package.outputs}

    def _compute(self, layer: Layer, arrays: list[np.ndarray], see: Watch) -> Sequence[np.ndarray]:
        parameters, weights = layer.parameters, layer.weights()
        if layer.kind is contract.EMBEDDING:
            return (reference.embedding(parameters, weights, *arrays),)
        if layer.kind is contract.ATTENTION:
            return reference.attention(parameters, weights, *arrays)
        if layer.kind is contract.EXPERTS:
            result = reference.experts(parameters, weights, *arrays)
            index = parameters["layer"]
            see(names.scores(index), result.scores)
            see(names.experts(index), result.experts)
            see(names.expert_weights(index), result.expert_weights)
            return (result.residual,)
        if layer.kind is contract.CACHE_ROWS:
            return (reference.cache_rows(arrays),)
        return (reference.head(parameters, weights, self._embedding.weights(), *arrays),)

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        path, features = self.package.path, self.package.inputs
        if set(inputs) != set(features):
            raise UserError(
                f"{path}: its inputs are {', '.join(features)}, not {', '.join(inputs)}."
            )
        for name, feature in features.items():
            if not feature.takes(inputs[name]):
                raise UserError(
                    f"{path}: input '{name}' is {_text(inputs[name])}, declared {feature}."
                )
        tokens, position = inputs[names.TOKENS], int(inputs[names.POSITION][0])
        vocabulary = self._embedding.parameters["vocab_size"]
        if not 0 <= tokens.min() <= tokens.max() < vocabulary:
            raise UserError(f"{path}: token ids must be 0 to {vocabulary - 1}.")
        context = inputs[names.KEY_CACHE].shape[2]
        if not 0 <= position <= context - len(tokens):
            raise UserError(
                f"{path}: {len(tokens)} tokens at position {position} leave the context of "
                f"{context} positions."
            )


def _text(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
