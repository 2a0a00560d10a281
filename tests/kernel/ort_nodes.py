"""One node of a graph, run by ONNX Runtime or by the stand-in for it (ort_host.cpp)."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mobilemoe_mlx.onnx_operators import DOMAIN, library_path

# As onnx.TensorProto has them.
TYPES = {np.float32: 1, np.uint8: 2, np.int32: 6, np.int64: 7, np.float16: 10}

Arrays = Mapping[str, np.ndarray]


class NodeError(Exception):
    """What the runtime said."""


@dataclass
class Node:
    """An operator of ours with its initializers, which come after its inputs.

    `outputs`: name -> its dtype; `shared`: an output -> the input whose memory it is.
    """

    operator: str
    attributes: Mapping[str, int | float | str]
    inputs: Mapping[str, type]
    weights: Arrays
    outputs: Mapping[str, type]
    shared: Mapping[str, str] = field(default_factory=dict)


class Host:
    """The stand-in, in a process of its own: `command` starts it."""

    def __init__(self, command: list[str], cpu_path: str = "", api_version: int = 18) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.cpu_path, self.api_version = cpu_path, api_version

    def run(
        self, node: Node, inputs: Arrays, precision: str = "", threads: str = "2"
    ) -> list[np.ndarray]:
        """The outputs; raises NodeError."""
        entries = {"threads": threads, "cpu_path": self.cpu_path, "precision": precision}
        said = {f"mobilemoe.{key}": value for key, value in entries.items() if value}
        parts = [struct.pack("<qq", self.api_version, len(said))]
        parts += [_string(text.encode()) for pair in said.items() for text in pair]
        parts += [_string(node.operator.encode()), _numbers(len(node.attributes))]
        for name, value in node.attributes.items():
            parts += [_string(name.encode()), _string(_attribute(value))]
        arrays = {**{name: inputs[name] for name in node.inputs}, **node.weights}
        parts.append(_numbers(len(arrays)))
        for name, array in arrays.items():
            kind = TYPES[array.dtype.type]
            parts.append(_numbers(name in node.weights, kind, array.ndim, *array.shape))
            parts.append(_string(array.tobytes()))
        places = list(arrays)
        shared = [places.index(node.shared[n]) if n in node.shared else -1 for n in node.outputs]
        parts.append(_numbers(len(shared), *shared))
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(parts))
        self.process.stdin.flush()
        if error := self._read_string().decode():
            raise NodeError(error)
        return [self._read_array(dtype) for dtype in node.outputs.values()]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        found = self.process.stdout.read(size)
        assert len(found) == size, "the program ended; it printed why"
        return found

    def _read_string(self) -> bytes:
        (size,) = struct.unpack("<i", self._read(4))
        return self._read(size)

    def _read_array(self, dtype: type) -> np.ndarray:
        (count,) = struct.unpack("<q", self._read(8))
        shape = struct.unpack(f"<{count}q", self._read(8 * count))
        return np.frombuffer(self._read_string(), dtype).reshape(shape)


class Runtime:
    """ONNX Runtime itself, with a code path of this CPU."""

    def __init__(self, cpu_path: str = "") -> None:
        self.cpu_path = cpu_path

    def run(
        self, node: Node, inputs: Arrays, precision: str = "", threads: str = "2"
    ) -> list[np.ndarray]:
        """The outputs; raises NodeError."""
        import onnxruntime

        said = {"threads": threads, "cpu_path": self.cpu_path, "precision": precision}
        try:
            session = open_session([node], options(said))
            binding = session.io_binding()
            values = {n: onnxruntime.OrtValue.ortvalue_from_numpy(inputs[n]) for n in node.inputs}
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in node.outputs:
                if name in node.shared:
                    binding.bind_ortvalue_output(name, values[node.shared[name]])
                else:
                    binding.bind_output(name)
            session.run_with_iobinding(binding)
            # Copies, since the memory is that of `values` where it is shared.
            return [np.array(value.numpy()) for value in binding.get_outputs()]
        except Exception as error:  # ONNX Runtime's own, which share no base
            raise NodeError(str(error)) from error


def options(entries: Mapping[str, str]) -> Any:
    """Options of a session with our operators; `entries` of its configuration, "" for none."""
    import onnxruntime

    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = 1
    made.log_severity_level = 4
    for key, value in entries.items():
        if value:
            made.add_session_config_entry(f"mobilemoe.{key}", value)
    made.register_custom_ops_library(str(library_path()))
    return made


def open_session(nodes: Sequence[Node], session_options: Any) -> Any:
    """A session of a graph with these nodes side by side; names must differ."""

    import onnxruntime
    from onnx import helper, numpy_helper

    def info(name: str, dtype: type) -> Any:
        return helper.make_tensor_value_info(name, TYPES[dtype], None)

    graph = helper.make_graph(
        [
            helper.make_node(
                n.operator,
                [*n.inputs, *n.weights],
                list(n.outputs),
                name="node" if i == 0 else f"node{i}",
                domain=DOMAIN,
                **n.attributes,
            )
            for i, n in enumerate(nodes)
        ],
        "nodes",
        [info(name, dtype) for n in nodes for name, dtype in n.inputs.items()],
        [info(name, dtype) for n in nodes for name, dtype in n.outputs.items()],
        [numpy_helper.from_array(a, name) for n in nodes for name, a in n.weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options, providers=["CPUExecutionProvider"]
    )


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def _string(value: bytes) -> bytes:
    return struct.pack("<i", len(value)) + value


def _attribute(value: int | float | str) -> bytes:
    if isinstance(value, str):
        return b"s" + value.encode()
    return b"f" + struct.pack("<f", value) if isinstance(value, float) else b"i" + _numbers(value)
