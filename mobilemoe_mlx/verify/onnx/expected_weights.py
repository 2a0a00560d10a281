"""What an export's weights must be, made from the checkpoint without the exporter's code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.export.int4_source import to_numpy
from mobilemoe_mlx.model import rope_periods
from mobilemoe_mlx.verify.onnx.requantized import round_along_in


class Expected(NamedTuple):
    """One tensor, which is made when it is compared."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def expected_weights(
    checkpoint: Checkpoint, facts: Mapping[str, Any], head_dim: int
) -> dict[str, Expected]:
    """Name in the graph -> what it must hold.

    `facts`: form, context, activations; `head_dim`: features of a head in the cache.
    """
    expected = _Expected(checkpoint)
    whole = facts["form"] == "fused"  # our own operators, which take the checkpoint's bytes
    expected.rotations(facts, head_dim, whole)
    expected.floats("model.norm.weight")
    if whole:
        expected.published("model.embed_tokens")
    else:
        expected.linear("model.embed_tokens", ["model.embed_tokens"])
        expected.scales_again("model.embed_tokens")
    for layer in range(checkpoint.args.num_hidden_layers):
        at = f"model.layers.{layer}"
        attention, moe = f"{at}.self_attn", f"{at}.feed_forward"
        expected.floats(
            f"{at}.input_layernorm.weight",
            f"{at}.post_attention_layernorm.weight",
            f"{moe}.router.weight",
            f"{moe}.expert_bias",
        )
        shared = [f"{moe}.shared_expert.{name}_proj" for name in ("gate", "up", "down")]
        qkv = [f"{attention}.{name}_proj" for name in "qkv"]
        if whole:
            for module in (*qkv, f"{attention}.o_proj", *shared):
                expected.published(module)
        else:
            expected.linear(f"{attention}.qkv_proj", qkv)
            expected.linear(f"{attention}.o_proj", [f"{attention}.o_proj"])
            expected.linear(f"{moe}.shared_expert.gate_up_proj", shared[:2])
            expected.linear(shared[2], shared[2:])
        for stem in ("gate_up", "down"):
            expected.experts(f"{moe}.experts.{stem}", facts["form"])
    return expected.tensors


class _Expected:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.tensors: dict[str, Expected] = {}

    def _read(self, name: str) -> np.ndarray:
        return to_numpy(self._checkpoint.tensors[name])

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.tensors[name].shape

    def floats(self, *names: str) -> None:
        """Widened to float32."""
        for name in names:
            self.tensors[name] = Expected(self._shape(name), partial(self._read, name))

    def published(self, module: str) -> None:
        """A linear in its own bytes."""
        for name in (f"{module}.qweight", f"{module}.weight_scale"):
            self.tensors[name] = Expected(self._shape(name), partial(self._read, name))

    def linear(self, name: str, modules: Sequence[str]) -> None:
        """Linears, one after the other, each code + 8."""
        rows = sum(self._shape(f"{m}.weight_scale")[0] for m in modules)
        groups = self._shape(f"{modules[0]}.weight_scale")[1]

        def codes() -> np.ndarray:
            return np.concatenate([plus_8(self._read(f"{m}.qweight")) for m in modules])

        def scales() -> np.ndarray:
            return np.concatenate([self._read(f"{m}.weight_scale") for m in modules])

        self.tensors[f"{name}.qweight"] = Expected((rows, groups, 16), codes)
        self.tensors[f"{name}.weight_scale"] = Expected((rows, groups), scales)

    def scales_again(self, name: str) -> None:
        """The scales of rows that are gathered."""
        scales = self.tensors[f"{name}.weight_scale"]
        self.tensors[f"{name}.scale_of_rows"] = Expected((*scales.shape, 1), scales.read)

    def experts(self, name: str, form: str) -> None:
        """One matrix of all experts, as its form takes it."""
        codes, scales = f"{name}_qweight", f"{name}_scale"
        if form == "qmoe":
            self._requantized(name)
            return
        kept = (lambda x: x) if form == "fused" else plus_8
        self.tensors[codes] = Expected(self._shape(codes), lambda: kept(self._read(codes)))
        self.tensors[scales] = Expected(self._shape(scales), lambda: self._read(scales))

    def _requantized(self, name: str) -> None:
        """From the last expert to the first, and rows of gate and up in turns."""
        codes, scales = f"{name}_qweight", f"{name}_scale"
        count, inputs, half = self._shape(codes)

        def rounded(which: int) -> np.ndarray:
            array = round_along_in(self._read(codes), self._read(scales))[which][::-1]
            if name.endswith("gate_up"):
                array = np.stack(np.split(array, 2, axis=1), axis=2).reshape(array.shape)
            return plus_8(array) if which == 0 else array

        self.tensors[codes] = Expected((count, 2 * half, inputs // 2), lambda: rounded(0))
        self.tensors[scales] = Expected((count, 2 * half, inputs // 32), lambda: rounded(1))

    def rotations(self, facts: Mapping[str, Any], head_dim: int, whole: bool) -> None:
        """Cosine and sine of every position's angle."""
        positions = np.arange(facts["context"], dtype=np.float64)
        angles = np.outer(positions, 1 / rope_periods(self._checkpoint.args).astype(np.float64))
        if whole:
            table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
            self.tensors["rotations"] = Expected(table.shape, lambda: table)
            return
        for name, part in (("rope_cos", np.cos(angles)), ("rope_sin", np.sin(angles))):
            array = np.zeros((len(part), head_dim // 2), facts["activations"])
            array[:, : part.shape[1]] = part.astype(np.float32)
            self.tensors[name] = Expected(array.shape, partial(np.asarray, array))


def plus_8(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, -8..7 in two's complement, to 0..15."""
    low, high = ((codes & 0x0F) + 8) & 0x0F, ((codes >> 4) + 8) & 0x0F
    return low | high << 4
