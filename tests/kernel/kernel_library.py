"""The CPU kernel's operators one by one, on numpy arrays; the package calls only whole models."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe_mlx.cpu_kernel import library as package
from mobilemoe_mlx.cpu_kernel.library import floats, integers, tensor
from mobilemoe_mlx.cpu_kernel.structures import Int4, MoeWeights

KERNEL = Path(__file__).parents[2] / "coreml" / "kernel"


class AttentionShape(c.Structure):
    _fields_ = [
        ("heads", c.c_int32),
        ("kv_heads", c.c_int32),
        ("head_dim", c.c_int32),
        ("context", c.c_int32),
        ("qk_norm", c.c_int32),
        ("qk_norm_eps", c.c_float),
        ("score_scale", c.c_float),
    ]


class MoeShape(c.Structure):
    _fields_ = [
        ("hidden_size", c.c_int32),
        ("intermediate_size", c.c_int32),
        ("intermediate_size_mlp", c.c_int32),
        ("num_local_experts", c.c_int32),
        ("num_experts_per_tok", c.c_int32),
        ("norm_topk_prob", c.c_int32),
        ("routed_scaling_factor", c.c_float),
    ]


class Library(package.Library):
    """The library, with the operators' functions declared."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # Runtimes of code paths that another CPU has, of a precision and threads.
        self.emulated: dict[str | None, Callable[[str, int], Any]] = {}
        for name in ("linear_int4", "head", "attention", "moe_ffn"):
            self.function(f"{name}_workspace").restype = c.c_size_t

    def runtime(
        self, precision: str = "exact", threads: int = 2, cpu_path: str | None = None
    ) -> Runtime:
        if cpu_path in self.emulated:
            return self.emulated[cpu_path](precision, threads)
        return Runtime(self, precision, threads, cpu_path)


class Runtime(package.Runtime):
    """A runtime, and the operators."""

    def linear(self, codes: np.ndarray, scales: np.ndarray, x: np.ndarray) -> np.ndarray:
        rows, columns = codes.shape[0], codes.shape[1] * 2
        y = np.full((len(x), rows), np.nan, np.float32)
        weight = Int4(tensor(codes), tensor(scales))
        room = self._workspace("linear_int4", len(x), rows, columns)
        self.library.call(
            "linear_int4",
            self.pointer,
            c.byref(weight),
            rows,
            columns,
            floats(x),
            len(x),
            floats(y),
            *room,
        )
        return y

    def embedding(self, codes: np.ndarray, scales: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        y = np.full((len(tokens), codes.shape[1] * 2), np.nan, np.float32)
        table = Int4(tensor(codes), tensor(scales))
        self.library.call(
            "embedding",
            self.pointer,
            c.byref(table),
            codes.shape[0],
            y.shape[1],
            integers(tokens),
            len(tokens),
            floats(y),
        )
        return y

    def rms_norm(self, x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        y = np.full(x.shape, np.nan, np.float32)
        self.library.call(
            "rms_norm",
            self.pointer,
            floats(x),
            c.byref(tensor(weight)),
            *x.shape,
            c.c_float(eps),
            floats(y),
        )
        return y

    def head(
        self, x: np.ndarray, norm: np.ndarray, eps: float, codes: np.ndarray, scales: np.ndarray
    ) -> np.ndarray:
        logits = np.full((len(x), len(codes)), np.nan, np.float32)
        table = Int4(tensor(codes), tensor(scales))
        room = self._workspace("head", len(x), len(codes), x.shape[1])
        self.library.call(
            "head",
            self.pointer,
            floats(x),
            c.byref(tensor(norm)),
            c.c_float(eps),
            c.byref(table),
            len(codes),
            x.shape[1],
            len(x),
            floats(logits),
            *room,
        )
        return logits

    def attention(
        self,
        shape: AttentionShape,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        position: int,
        key_cache: np.ndarray | None,
        value_cache: np.ndarray | None,
        periods: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> (mixed, new keys, new values)."""
        count = len(q)
        rows = (shape.kv_heads, count, shape.head_dim)
        keys, values = np.full(rows, np.nan, np.float32), np.full(rows, np.nan, np.float32)
        y = np.full((count, shape.heads, shape.head_dim), np.nan, np.float32)
        room = self._workspace("attention", c.byref(shape), position, count)
        self.library.call(
            "attention",
            self.pointer,
            c.byref(shape),
            floats(q),
            floats(k),
            floats(v),
            position,
            count,
            floats(key_cache),
            floats(value_cache),
            floats(periods),
            floats(keys),
            floats(values),
            floats(y),
            *room,
        )
        return y, keys, values

    def moe_ffn(self, shape: MoeShape, weights: MoeWeights, x: np.ndarray) -> np.ndarray:
        y = np.full(x.shape, np.nan, np.float32)
        room = self._workspace("moe_ffn", c.byref(shape), len(x))
        self.library.call(
            "moe_ffn",
            self.pointer,
            c.byref(shape),
            c.byref(weights),
            floats(x),
            len(x),
            floats(y),
            *room,
        )
        return y

    def _workspace(self, operator: str, *sizes: Any) -> tuple[Any, Any]:
        bytes_needed = self.library.function(f"{operator}_workspace")(self.pointer, *sizes)
        self._room = np.full(bytes_needed, 0xFF, np.uint8)  # NaN wherever it is read too early
        return c.c_void_p(self._room.ctypes.data), c.c_size_t(bytes_needed)
