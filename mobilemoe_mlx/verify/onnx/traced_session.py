"""Feed tokens to a saved ONNX export in ONNX Runtime, and gather what its layers computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.cpu_kernel.library import default_threads
from mobilemoe_mlx.engines.onnx_session import (
    all_logits_model,
    open_session,
    read_model,
    run_session,
)
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.numerics.values import LayerValues
from mobilemoe_mlx.onnx_folder import names
from mobilemoe_mlx.onnx_folder.folder import ONNXFolder
from mobilemoe_mlx.verify.session import Step

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class TracedSession:
    """A `Session` of the saved graph, which gives the layers' values as outputs too.

    In the arithmetic "float32" no activation is rounded: the graph's attributes that say so are
    set otherwise, and all else is as it is saved.
    """

    def __init__(
        self,
        export: ONNXFolder,
        args: ModelArgs,
        context: int,
        block: int,
        arithmetic: Arithmetic,
        *,
        precision: str | None = None,
        all_logits: bool = False,
    ) -> None:
        """`precision`: of our own operators, instead of the export's. `all_logits`: every token's
        logits, where the saved graph gives the last one's."""
        self._export = export
        self.args, self.context, self.block = args, context, block
        self.scores: list[np.ndarray] | None = None  # ignored: the graph routes by itself
        model = all_logits_model(export) if all_logits else read_model(export)
        made = {name for node in model.graph.node for name in node.output}
        self.shows_routing = names.scores(0) in made
        self._traced = [
            name
            for layer in range(args.num_hidden_layers)
            for name in (names.hidden(layer), names.scores(layer), names.experts(layer))
            if name in made
        ]
        outputs = model.graph.output
        outputs.extend(
            helper.make_tensor_value_info(
                name,
                TensorProto.INT64 if name.endswith("experts") else TensorProto.FLOAT,
                None,
            )
            for name in self._traced
        )
        if arithmetic == "float32":
            _exact(model)
            precision = "exact" if export.operators is not None else None
        self._runtime = open_session(export, default_threads(), precision, model)
        self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        self._caches = {
            value.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((1, value.shape[1], self.context, value.shape[3]), _TYPES[value.type])
            )
            for value in self._runtime.get_inputs()
            if value.name not in (names.INPUT_IDS, names.ATTENTION_MASK)
        }

    def feed(self, tokens: Sequence[int], position: int, is_decode: bool) -> Step:
        """Run one call."""
        binding = self._runtime.io_binding()
        mask = np.ones((1, position + len(tokens)), np.int64)
        binding.bind_cpu_input(names.INPUT_IDS, np.array([tokens], np.int64))
        binding.bind_cpu_input(names.ATTENTION_MASK, mask)
        for layer in range(self.args.num_hidden_layers):
            for past, present in (
                (names.PAST_KEY, names.PRESENT_KEY),
                (names.PAST_VALUE, names.PRESENT_VALUE),
            ):
                cache = self._caches[past % layer]
                binding.bind_ortvalue_input(past % layer, cache)
                binding.bind_ortvalue_output(present % layer, cache)
        wanted = [names.LOGITS, *self._traced]
        for name in wanted:
            binding.bind_output(name)
        run_session(self._export, self._runtime, binding)
        arrays = [value.numpy() for value in binding.get_outputs()[-len(wanted) :]]
        found = dict(zip(wanted, arrays, strict=True))
        layers = [self._layer(index, found) for index in range(self.args.num_hidden_layers)]
        return Step(layers, found[names.LOGITS][0])

    def _layer(self, index: int, found: dict[str, np.ndarray]) -> LayerValues:
        hidden = found[names.hidden(index)][0]
        if self.shows_routing:
            scores = found[names.scores(index)]
            if (experts := found.get(names.experts(index))) is None:  # `QMoE` sorts them itself
                experts = np.argsort(-scores, kind="stable")[:, : self.args.num_experts_per_tok]
            return LayerValues(hidden, scores, experts)
        # Not to be seen from outside the operator: `hidden_routing.infer_routing` fills them in.
        scores = np.zeros((len(hidden), self.args.num_local_experts), np.float32)
        experts = np.zeros((len(hidden), self.args.num_experts_per_tok), np.int64)
        return LayerValues(hidden, scores, experts)


def _exact(model: onnx.ModelProto) -> None:
    """Let ONNX Runtime's products take float32 as it is."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
