"""A saved package of custom layers: its interface, weights and evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export import manifest
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.metadata import user_defined
from mobilemoe_mlx.export.coreml.resources import FORMAT, resources_folder
from mobilemoe_mlx.export.manifest import ListedFile
from mobilemoe_mlx.mlpackage.features import Feature
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.verify.calls import Call
from mobilemoe_mlx.verify.coreml.custom_layer_model import read_custom_layer_model
from mobilemoe_mlx.verify.coreml.custom_layer_session import CustomLayerSession
from mobilemoe_mlx.verify.coreml.custom_layer_weights import check_layer_weights
from mobilemoe_mlx.verify.coreml.evaluation_time import custom_layer_seconds
from mobilemoe_mlx.verify.coreml.manifest_facts import manifest_facts
from mobilemoe_mlx.verify.session import Session
from mobilemoe_mlx.verify.weights_check import WeightsCheck


class CustomLayerPackage:
    """The NeuralNetwork of custom layers, each computed by the reference of its contract."""

    format: str = FORMAT
    form: str = "custom-layer"
    takes_scores: bool = False  # each layer routes by itself
    weight_suffixes: tuple[str, ...] = (".bin", ".mlmodel")
    arithmetics: tuple[Arithmetic, ...] = ("float32",)

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path.parent
        self.manifest = resources_folder(path) / manifest.NAME
        self._package = read_custom_layer_model(path)
        self.user_defined = user_defined(self._package.user_defined)
        self.context = self._package.inputs[names.KEY_CACHE].shape[2]
        (head,) = self._package.layers_of(contract.HEAD)
        self.block = self._package.inputs[names.TOKENS].shape[0]
        self.facts = {
            "form": self.form,
            "target": contract.OLDEST_SYSTEM,
            "context": self.context,
            "prefill_block": self.block,
            "logits": head.parameters["logits"],
        }

    def manifest_facts(
        self, checkpoint: Checkpoint, listed: Mapping[str, ListedFile]
    ) -> dict[str, Any]:
        """Name -> value of what the manifest must say."""
        return manifest_facts(self, checkpoint, listed)

    def reference(self, model: Model, checkpoint: Checkpoint) -> Model:
        """What MLX is to compute: `model` itself."""
        return model

    def functions(self) -> dict[str, Any]:
        """Function -> "inputs", "outputs", "states" -> name -> "dtype", "shape", "least" shape."""
        inputs, outputs = (
            {name: dataclasses.asdict(feature) for name, feature in features.items()}
            for features in (self._package.inputs, self._package.outputs)
        )
        return {"main": {"inputs": inputs, "outputs": outputs, "states": {}}}

    def cache_bytes(self) -> int:
        """The bytes of its keys and values."""
        caches = (self._package.inputs[name] for name in (names.KEY_CACHE, names.VALUE_CACHE))
        return sum(math.prod(c.shape) * np.dtype(c.dtype).itemsize for c in caches)

    def check_interface(self, args: ModelArgs) -> None:
        """Raise UserError unless inputs, outputs and layers are those of a model of `args`."""
        any_count = (1, self.block)
        layers, heads = args.num_hidden_layers, args.num_key_value_heads
        cache = _feature("float32", layers, heads, self.context, args.head_dim)
        rows = _feature("float32", layers, heads, any_count, args.head_dim)
        logit_rows = any_count if self.facts["logits"] == "all" else 1
        expected = {
            names.TOKENS: _feature("int32", any_count),
            names.POSITION: _feature("int32", 1),
            names.KEY_CACHE: cache,
            names.VALUE_CACHE: cache,
            names.LOGITS: _feature("float32", logit_rows, args.vocab_size),
            names.NEW_KEYS: rows,
            names.NEW_VALUES: rows,
        }
        found = {**self._package.inputs, **self._package.outputs}
        for name in (*expected, *found):
            if found.get(name) != expected.get(name):
                raise UserError(
                    f"{self.path}: {name} is {found.get(name)}, an export has {expected.get(name)}."
                )
        made = [(layer.name, layer.outputs[0]) for layer in self._package.layers]
        indices = [layer.parameters.get("layer") for layer in self._package.layers]
        pairs = [
            (names.layer(index, part), value)
            for index in range(layers)
            for part, value in (
                ("attention", names.layer(index, "attended")),
                ("moe", names.hidden(index)),
            )
        ]
        numbers = [index for index in range(layers) for _ in range(2)]
        if made[1 : 1 + len(pairs)] != pairs or indices[1 : 1 + len(pairs)] != numbers:
            raise UserError(f"{self.path}: its layers are not those of an export.")

    def check_weights(self, checkpoint: Checkpoint) -> WeightsCheck:
        """Compare its weights with the checkpoint's, bit for bit."""
        return check_layer_weights(self._package, checkpoint)

    def session(self, args: ModelArgs, arithmetic: Arithmetic) -> Session:
        """A session of the contract's reference, which has one arithmetic."""
        return CustomLayerSession(self._package, args)

    def seconds(self, args: ModelArgs, arithmetic: Arithmetic, call: Call) -> float:
        """About how long the evaluation of one call takes, on two processor cores."""
        return custom_layer_seconds(args, call.length)

    def peak_intermediate_bytes(self) -> int | None:
        """None: what a layer needs is decided by the class that the app supplies."""
        return None


def _feature(dtype: str, *sizes: int | tuple[int, int]) -> Feature:
    least, most = zip(*(n if isinstance(n, tuple) else (n, n) for n in sizes), strict=True)
    return Feature(dtype, most, least)
