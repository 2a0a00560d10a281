"""The graph of a MobileMoE as onnxruntime-genai runs it: ids, mask, cache in; logits, cache out.

Made node by node from the checkpoint's own bytes. The residual stream, norms, router and routed
experts are float32; linears, attention and cache are `ExportOptions.activations`.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.folder import published_config
from mobilemoe_mlx.export.onnx.external_data import ExternalData
from mobilemoe_mlx.export.onnx.forms import OPERATOR_SETS, body_of
from mobilemoe_mlx.export.onnx.graph import CONTRIB, Graph
from mobilemoe_mlx.export.onnx.options import ExportOptions
from mobilemoe_mlx.export.onnx.weights import Weights
from mobilemoe_mlx.onnx_folder import names
from mobilemoe_mlx.onnx_folder.folder import PREFIX

# The first opset with all that is used here, by a runtime that has the other operators.
OPSET = 21


class Built(NamedTuple):
    """A graph whose weights are in a file beside it."""

    model: onnx.ModelProto
    cached_head_dim: int  # features of a head in the cache
    added_errors: dict[str, float]  # of every matrix that was rounded a second time, by its name


def build(checkpoint: Checkpoint, options: ExportOptions, data: ExternalData) -> Built:
    """Make the model, and write its weights to `data` on the way, one tensor at a time.

    `checkpoint` is INT4 in the published layout (`int4_source.open_source`).

    Inputs: input_ids int64 [batch, tokens]; attention_mask int64 [batch, past + tokens], 1 for a
    token and 0 for padding on the right; past_key_values.N.{key, value} [batch, kv_heads, past,
    head]. Outputs: logits float32 [batch, 1, vocabulary] after each row's last token (all of a long
    prompt's would take half a megabyte a token), and present.N.{key, value}.
    """
    graph = Graph()
    weights = Weights(checkpoint, graph, data)
    body = body_of(graph, weights, options)
    h = body.embed()
    for index in range(checkpoint.args.num_hidden_layers):
        h = body.layer(index, h)
    graph.within("head")
    body.logits(_last_rows(graph, h))
    head_dim = body.cached_head_dim(checkpoint.args)
    caches = _Caches(checkpoint, options, head_dim)
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
        for name, length in ((names.INPUT_IDS, "tokens"), (names.ATTENTION_MASK, "total"))
    ]
    vocabulary = checkpoint.args.vocab_size
    logits = helper.make_tensor_value_info(
        names.LOGITS, TensorProto.FLOAT, ["batch", 1, vocabulary]
    )
    model = graph.model(
        [*ids, *caches.infos(names.PAST_KEY, names.PAST_VALUE, "past")],
        [logits, *caches.infos(names.PRESENT_KEY, names.PRESENT_VALUE, "present")],
        [("", OPSET), (CONTRIB, 1), *OPERATOR_SETS[options.form]],
        _metadata(checkpoint, options),
    )
    return Built(model, head_dim, weights.added_errors)


def _last_rows(graph: Graph, h: str) -> str:
    """h [batch, tokens, hidden] -> each row's last token that is no padding, [batch, 1, hidden].

    Padding on the right is zeros of the mask behind a row's last token.
    """
    one, zero = graph.constant(1, np.int64), graph.constant(0, np.int64)
    tokens = graph.add("Gather", graph.add("Shape", names.INPUT_IDS), one)
    total = graph.add("Gather", graph.add("Shape", names.ATTENTION_MASK), one)
    past = graph.add("Sub", total, tokens)
    used = graph.add("ReduceSum", names.ATTENTION_MASK, graph.integers(1), keepdims=0)
    place = graph.add("Sub", graph.add("Sub", used, past), one)
    place = graph.add("Clip", place, zero, graph.add("Sub", tokens, one))
    place = graph.add("Unsqueeze", place, graph.integers(1, 2))
    return str(graph.add("GatherND", h, place, outputs=[names.LAST_HIDDEN], batch_dims=1))


class _Caches:
    """What the graph says of its cache."""

    def __init__(self, checkpoint: Checkpoint, options: ExportOptions, head_dim: int) -> None:
        self._args, self._head_dim = checkpoint.args, head_dim
        self._dtype = TensorProto.FLOAT16 if options.activations == "float16" else TensorProto.FLOAT

    def infos(self, key: str, value: str, length: str) -> list[onnx.ValueInfoProto]:
        shape: list[str | int | None] = [
            "batch",
            self._args.num_key_value_heads,
            length,
            self._head_dim,
        ]
        return [
            helper.make_tensor_value_info(name % layer, self._dtype, shape)
            for layer in range(self._args.num_hidden_layers)
            for name in (key, value)
        ]


def _metadata(checkpoint: Checkpoint, options: ExportOptions) -> dict[str, str]:
    """What the file says of itself, under our prefix."""
    fields = {
        "form": options.form,
        "context": str(options.context),
        "activations": options.activations,
        "accuracy_level": str(options.accuracy_level),
        "config": json.dumps(published_config(checkpoint.args, checkpoint.config)),
        "version": version("mobilemoe-mlx"),
    }
    return {PREFIX + name: text for name, text in fields.items()}
