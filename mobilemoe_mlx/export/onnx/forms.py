"""The forms that an export can have, and what each builds the decoder of.

To add a form, write a body with the methods of `Body`, or a function for the experts alone, and
list it here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.onnx.fused import DOMAIN, VERSION, FusedBody
from mobilemoe_mlx.export.onnx.graph import Graph
from mobilemoe_mlx.export.onnx.options import ExportOptions, Form
from mobilemoe_mlx.export.onnx.portable_moe import portable
from mobilemoe_mlx.export.onnx.qmoe import qmoe
from mobilemoe_mlx.export.onnx.stock_body import StockBody
from mobilemoe_mlx.export.onnx.weights import Weights


class Body(Protocol):
    """A decoder that is built into a graph, part by part in this order."""

    @staticmethod
    def cached_head_dim(args: ModelArgs) -> int:
        """Features of a head in the cache."""

    def embed(self) -> str:
        """-> the residual stream before the first layer, float32 [batch, tokens, hidden]."""

    def layer(self, index: int, h: str) -> str:
        """The residual stream after a layer, which is named `names.hidden(index)`."""

    def logits(self, h: str) -> None:
        """The output `names.LOGITS` of h [batch, rows, hidden]."""


FORMS: dict[Form, Callable[[Graph, Weights, ExportOptions], Body]] = {
    "fused": FusedBody,
    "portable": partial(StockBody, experts=portable),
    "qmoe": partial(StockBody, experts=qmoe),
}

# Operator sets that a form needs besides ONNX's own and ONNX Runtime's.
OPERATOR_SETS: dict[Form, tuple[tuple[str, int], ...]] = {
    "fused": ((DOMAIN, VERSION),),
    "portable": (),
    "qmoe": (),
}


def body_of(graph: Graph, weights: Weights, options: ExportOptions) -> Body:
    """The body of `options`."""
    return FORMS[options.form](graph, weights, options)
