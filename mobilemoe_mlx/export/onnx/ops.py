"""Small pieces of the graph that several parts are made of."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from mobilemoe_mlx.config import GROUP_SIZE
from mobilemoe_mlx.export.onnx.graph import CONTRIB, Graph
from mobilemoe_mlx.export.onnx.options import ExportOptions
from mobilemoe_mlx.export.onnx.weights import Int4


def rms_norm(graph: Graph, x: str, weight: str | None, eps: float) -> str:
    """RMSNorm over the last axis, float32; `weight` None: without one.

    Written out, since ONNX has the operator only from opset 23 on; ONNX Runtime finds this form and
    makes one operator of it, which needs a weight: ones where there is none.
    """
    square = graph.add("Pow", x, graph.scalar(2))
    mean = graph.add("ReduceMean", square, graph.integers(-1), keepdims=1)
    root = graph.add("Sqrt", graph.add("Add", mean, graph.scalar(eps)))
    unit = graph.add("Div", x, root)
    return unit if weight is None else str(graph.add("Mul", unit, weight))


def linear(
    graph: Graph, x: str, weight: Int4, inputs: int, outputs: int, options: ExportOptions
) -> str:
    """x [..., inputs] in `options.activations` -> [..., outputs], the same type."""
    scales = weight.scales
    if options.activations == "float32":
        scales = float32(graph, scales)  # of a constant: the runtime casts it once
    return str(
        graph.add(
            "MatMulNBits",
            x,
            weight.codes,
            scales,
            domain=CONTRIB,
            K=inputs,
            N=outputs,
            bits=4,
            block_size=GROUP_SIZE,
            accuracy_level=options.accuracy_level,
        )
    )


def unpack(graph: Graph, codes: str, scales: str, rows: str, count: int | None = None) -> str:
    """Rows of INT4 as float32: codes uint8 [N, ..., columns / 2] -> [rows, ..., columns].

    `scales`: float16 [N, ..., columns / 32]; `rows`: int64 [rows], `count` of them where that is
    known. They are gathered first, so that scales need no float32 copy of all N.
    """
    if count is None:
        size = graph.add("Size", rows)
        zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
        every = graph.add("Range", zero, size, one)
    else:
        every = graph.integers(*range(count))
    return str(
        graph.add(
            "GatherBlockQuantized",
            graph.add("Gather", codes, rows, axis=0),
            every,
            float32(graph, graph.add("Gather", scales, rows, axis=0)),
            domain=CONTRIB,
            bits=4,
            gather_axis=0,
            quantize_axis=2,
            block_size=GROUP_SIZE,
        )
    )


def swiglu(graph: Graph, gate_up: str) -> str:
    """[..., 2w] -> silu(first half) x second half, [..., w]."""
    gate, up = graph.add("Split", gate_up, outputs=2, axis=-1, num_outputs=2)
    silu = graph.add("Mul", gate, graph.add("Sigmoid", gate))
    return str(graph.add("Mul", silu, up))


def float32(graph: Graph, x: str) -> str:
    """`x` as float32."""
    return str(graph.add("Cast", x, to=TensorProto.FLOAT))


def in_activations(graph: Graph, x: str, options: ExportOptions) -> str:
    """`x`, float32, in the type of activations."""
    if options.activations == "float32":
        return x
    return str(graph.add("Cast", x, to=TensorProto.FLOAT16))


def from_activations(graph: Graph, x: str, options: ExportOptions) -> str:
    """`x`, in the type of activations, as float32."""
    return x if options.activations == "float32" else float32(graph, x)


def float_value(name: str) -> ValueInfoProto:
    """What a subgraph says of a float32 value, whatever its shape."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
