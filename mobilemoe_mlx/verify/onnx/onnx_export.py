"""A saved ONNX folder: what it says of itself, its interface, weights and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import INT4_QUANTIZATION, ModelArgs
from mobilemoe_mlx.engines.onnx_session import check_precision, read_model
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.manifest import ListedFile
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.onnx_folder import names
from mobilemoe_mlx.onnx_folder.folder import FORMAT, MANIFEST, PREFIX, open_onnx_folder
from mobilemoe_mlx.verify.calls import Call
from mobilemoe_mlx.verify.onnx.expected_weights import expected_weights
from mobilemoe_mlx.verify.onnx.requantized import with_requantized_experts
from mobilemoe_mlx.verify.onnx.stored_weights import StoredWeights
from mobilemoe_mlx.verify.onnx.traced_session import TracedSession
from mobilemoe_mlx.verify.session import Session
from mobilemoe_mlx.verify.weights_check import WeightsCheck, byte_differences

_BLOCK = 256  # tokens of one call; an export takes any number

# On two cores: of the forms the slowest, which unpacks experts as it goes.
_SECONDS_PER_PRODUCT = 4e-10

_ELEMENTS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
_BYTES = {"float32": 4, "float16": 2}
_LEVELS = {"int16": 0, "exact": 1, "int8": 4}  # of the precisions of our own operators


class ONNXExport:
    """A folder that `mobilemoe export onnx` wrote."""

    format: str = FORMAT
    takes_scores: bool = False  # ONNX Runtime routes by the graph alone

    def __init__(self, path: Path) -> None:
        self.path = self.root = path
        self.manifest = path / MANIFEST
        self._folder = open_onnx_folder(path)
        self._model = read_model(self._folder)
        metadata = {entry.key: entry.value for entry in self._model.metadata_props}
        self.user_defined = {
            key.removeprefix(PREFIX): value
            for key, value in metadata.items()
            if key.startswith(PREFIX)
        }
        self._values = {v.name: v for v in (*self._model.graph.input, *self._model.graph.output)}
        self._weights = StoredWeights(self._model, path)
        try:
            cache = self._values[names.PAST_KEY % 0].type.tensor_type
            self._head_dim = cache.shape.dim[3].dim_value
            activations = _ELEMENTS[cache.elem_type]
            tables = ("rotations", "rope_cos")
            self.context = next(self._weights.shape(n)[0] for n in tables if n in self._weights)
        except (KeyError, IndexError, StopIteration):
            raise UserError(
                f"{path} has no cache or no table of rotations as an export has them."
            ) from None
        self.block = max(2, min(_BLOCK, self.context // 4))
        self.form = _form(self._model)
        self.facts = {
            "form": self.form,
            "context": self.context,
            "activations": activations,
            "accuracy_level": _accuracy_level(self._model),
        }
        self.arithmetics = _arithmetics(self.facts)

    def check_interface(self, args: ModelArgs) -> None:
        """Raise UserError unless inputs and outputs are those of a model of `args`."""
        dtype = TensorProto.FLOAT16 if self.facts["activations"] == "float16" else TensorProto.FLOAT
        kv_heads = args.num_key_value_heads
        expected: dict[str, tuple[int, tuple[int | str, ...]]] = {
            names.INPUT_IDS: (TensorProto.INT64, ("batch", "tokens")),
            names.ATTENTION_MASK: (TensorProto.INT64, ("batch", "total")),
            names.LOGITS: (TensorProto.FLOAT, ("batch", 1, args.vocab_size)),
        }
        for layer in range(args.num_hidden_layers):
            for pattern, length in (
                (names.PAST_KEY, "past"),
                (names.PAST_VALUE, "past"),
                (names.PRESENT_KEY, "present"),
                (names.PRESENT_VALUE, "present"),
            ):
                expected[pattern % layer] = (dtype, ("batch", kv_heads, length, self._head_dim))
        found = {
            name: (
                value.type.tensor_type.elem_type,
                tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
            )
            for name, value in self._values.items()
        }
        for name in (*expected, *found):
            if found.get(name) != expected.get(name):
                raise UserError(
                    f"{self.path}: {name} is {found.get(name)}, an export has {expected.get(name)}."
                )

    def manifest_facts(
        self, checkpoint: Checkpoint, listed: Mapping[str, ListedFile]
    ) -> dict[str, Any]:
        """Name -> value of what the manifest must say."""
        args, item = checkpoint.args, _BYTES[str(self.facts["activations"])]
        rows = args.num_hidden_layers * 2 * args.num_key_value_heads * self.context
        return {
            **self.facts,
            "quantization": INT4_QUANTIZATION,
            "tokens": {"bos": args.bos_token_id, "eos": list(checkpoint.end_token_ids())},
            "sizes": {
                "checkpoint_weights": sum(t.nbytes for t in checkpoint.tensors.values()),
                "key_value_cache": rows * self._head_dim * item,
            },
        }

    def check_weights(self, checkpoint: Checkpoint) -> WeightsCheck:
        """Compare its weights with the checkpoint's, bit for bit.

        Of the form `qmoe` experts with what rounding the checkpoint's a second time gives.
        """
        problems, found = [], set(self._weights)
        for name, expected in expected_weights(checkpoint, self.facts, self._head_dim).items():
            if name not in found:
                problems.append(f"{name} is not in the graph")
                continue
            found.remove(name)
            array = expected.read()
            if (shape := self._weights.shape(name)) != expected.shape:
                problems.append(f"{name} has the shape {shape}, not {expected.shape}")
            elif (dtype := self._weights.dtype(name)) != array.dtype:
                problems.append(f"{name} is {dtype}, not {array.dtype}")
            else:
                differences = byte_differences(self._weights.read(name), array)
                problems += [f"{name} {why}" for why in differences]
        problems += [f"{name} is no tensor of the checkpoint" for name in sorted(found)]
        tensors = checkpoint.tensors
        return WeightsCheck(len(tensors), sum(t.nbytes for t in tensors.values()), tuple(problems))

    def reference(self, model: Model, checkpoint: Checkpoint) -> Model:
        """What MLX is to compute: `model`, with experts rounded a second time if these are."""
        return with_requantized_experts(model, checkpoint) if self.form == "qmoe" else model

    def session(self, args: ModelArgs, arithmetic: Arithmetic) -> Session:
        """A session in ONNX Runtime, in float32 throughout or as the export says."""
        return TracedSession(self._folder, args, self.context, self.block, arithmetic)

    def session_of_all_logits(self, args: ModelArgs, precision: str | None) -> Session:
        """A session as the export says, or in another `precision`, with every token's logits."""
        return TracedSession(
            self._folder,
            args,
            self.context,
            self.block,
            "declared",
            precision=precision,
            all_logits=True,
        )

    @property
    def precision(self) -> str:
        """What it computes in: that of its own operators, or the type of activations."""
        level = self.facts["accuracy_level"]
        if self.form == "fused":
            return next((name for name, number in _LEVELS.items() if number == level), "declared")
        return "int8" if level == 4 else str(self.facts["activations"])

    def check_precision(self, precision: str) -> None:
        """Raise UserError unless the export takes another precision than its own."""
        check_precision(self._folder, precision)

    def seconds(self, args: ModelArgs, arithmetic: Arithmetic, call: Call) -> float:
        """About how long one call takes, on two processor cores."""
        return call.length * account(args).active_parameters * _SECONDS_PER_PRODUCT

    def peak_intermediate_bytes(self) -> int | None:
        """None: ONNX Runtime plans it."""
        return None


def _form(model: onnx.ModelProto) -> str:
    """Which form a graph has, by its operators."""
    if any(node.domain == "mobilemoe" for node in model.graph.node):
        return "fused"
    return "qmoe" if any(node.op_type == "QMoE" for node in model.graph.node) else "portable"


def _accuracy_level(model: onnx.ModelProto) -> int:
    """What activations are rounded to, by the first operator that says."""
    for node in model.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if "precision" in attributes:
            return _LEVELS.get(attributes["precision"].s.decode("utf-8", "replace"), -1)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                return int(attribute.i)
    return -1


def _arithmetics(facts: Mapping[str, Any]) -> tuple[Arithmetic, ...]:
    """Float32 throughout, if it can be, and what it declares, if that is another."""
    level = facts["accuracy_level"]
    declared: tuple[Arithmetic, ...] = ("int8",) if level == 4 else ("declared",)
    if facts["activations"] == "float16":
        return declared
    is_exact = level == 1 or (level == 0 and facts["form"] != "fused")
    return ("float32",) if is_exact else ("float32", *declared)
