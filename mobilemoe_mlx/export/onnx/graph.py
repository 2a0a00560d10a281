"""An ONNX graph while it is made: nodes with names of their own, and small constants once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

CONTRIB = "com.microsoft"


class Graph:
    """Nodes in order, and initializers; a subgraph sees the values of the graph around it."""

    def __init__(self, around: Graph | None = None, prefix: str = "") -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._root: Graph = self if around is None else around._root
        self._prefix = prefix
        self._names: set[str] = set() if around is None else around._root._names
        self._constants: dict[tuple[Any, ...], str] = {}

    def within(self, prefix: str) -> None:
        """Names of the nodes that follow begin with `prefix`."""
        self._prefix = prefix

    def add(
        self,
        op: str,
        *inputs: str,
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """Append a node; -> its output's name, or the names of several.

        `inputs`: names, "" for one that is left out. `outputs`: how many, or their names.
        """
        name = self._free(f"{self._prefix}/{op}" if self._prefix else op)
        if isinstance(outputs, int):
            outputs = [name if outputs == 1 else f"{name}:{index}" for index in range(outputs)]
        node = helper.make_node(op, list(inputs), list(outputs), name, domain=domain, **attributes)
        self.nodes.append(node)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def constant(self, value: Any, dtype: type) -> str:
        """The name of a small constant, the same for equal ones."""
        array: np.ndarray = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        constants = self._root._constants
        if key not in constants:
            constants[key] = self._root._free(f"constant_{len(constants)}")
            self._root.initializers.append(numpy_helper.from_array(array, constants[key]))
        return constants[key]

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(values, np.int64)

    def scalar(self, value: float) -> str:
        """A constant float32."""
        return self.constant(value, np.float32)

    def subgraph(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> GraphProto:
        """What was made as the body of an `If` or a `Loop`."""
        return helper.make_graph(self.nodes, name, inputs, outputs)

    def model(
        self,
        inputs: Sequence[ValueInfoProto],
        outputs: Sequence[ValueInfoProto],
        opsets: Sequence[tuple[str, int]],
        metadata: dict[str, str],
    ) -> onnx.ModelProto:
        """What was made as a model."""
        graph = helper.make_graph(
            self.nodes, "mobilemoe", inputs, outputs, initializer=self.initializers
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
            # The first that may hold opset 21, so that old runtimes read the file.
            ir_version=10,
            producer_name="mobilemoe-mlx",
        )
        helper.set_model_props(model, metadata)
        return model

    def _free(self, name: str) -> str:
        names, number, free = self._root._names, 1, name
        while free in names:
            number += 1
            free = f"{name}_{number}"
        names.add(free)
        return free
