"""The C++ kernel, built from its sources and called through its C header with ctypes."""

from __future__ import annotations

import ctypes as c
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

KERNEL = Path(__file__).parents[2] / "coreml" / "kernel"
PRECISIONS = {"exact": 0, "int16": 1, "int8": 2}
CACHES = {"float32": 0, "float16": 1, "int8": 2}
OK, BAD_ARGUMENT, OUT_OF_MEMORY, UNSUPPORTED_CPU, CONTEXT_FULL, CANCELLED, BUSY = range(7)


class Tensor(c.Structure):
    _fields_ = [("data", c.c_void_p), ("bytes", c.c_size_t)]


class Int4(c.Structure):
    _fields_ = [("codes", Tensor), ("scales", Tensor)]


class Error(c.Structure):
    _fields_ = [("status", c.c_int), ("message", c.c_char * 256)]


class RuntimeOptions(c.Structure):
    _fields_ = [("precision", c.c_int), ("threads", c.c_int32), ("cpu_path", c.c_char_p)]


class Config(c.Structure):
    _fields_ = [
        *[
            (name, c.c_int32)
            for name in (
                "vocab_size",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "intermediate_size",
                "intermediate_size_mlp",
                "num_local_experts",
                "num_experts_per_tok",
                "norm_topk_prob",
                "use_qk_norm",
            )
        ],
        ("rms_norm_eps", c.c_float),
        ("routed_scaling_factor", c.c_float),
        ("rope_periods", c.POINTER(c.c_float)),
    ]


class MoeWeights(c.Structure):
    _fields_ = [
        ("router", Tensor),
        ("expert_bias", Tensor),
        ("gate_up", Int4),
        ("down", Int4),
        ("shared_gate", Int4),
        ("shared_up", Int4),
        ("shared_down", Int4),
    ]


class LayerWeights(c.Structure):
    _fields_ = [
        ("input_layernorm", Tensor),
        ("q_proj", Int4),
        ("k_proj", Int4),
        ("v_proj", Int4),
        ("o_proj", Int4),
        ("post_attention_layernorm", Tensor),
        ("feed_forward", MoeWeights),
        ("sliding_window", c.c_int32),
    ]


class Weights(c.Structure):
    _fields_ = [("embed_tokens", Int4), ("norm", Tensor), ("layers", c.POINTER(LayerWeights))]


class SessionOptions(c.Structure):
    _fields_ = [("context", c.c_int32), ("cache_type", c.c_int), ("block", c.c_int32)]


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


class KernelError(Exception):
    """A code that is not MOBILEMOE_OK, with its sentence."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.message.decode())
        self.status = int(error.status)


def compiler() -> str | None:
    """The C++ compiler that builds the library: $CXX, or what the system calls c++."""
    return shutil.which(os.environ.get("CXX") or "c++")


def build(folder: Path, compiler: str, *flags: str) -> Path:
    """Compile every source, two at a time, into a shared library in `folder`."""
    sources = sorted((KERNEL / "src").glob("*.cpp"))
    options = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        include = ["-I", str(KERNEL / "include")]
        run([compiler, *options, *flags, *include, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "libmobilemoe.so"
    run([compiler, *flags, "-shared", "-o", str(library), *map(str, objects), "-pthread"])
    return library


def run(command: list[str]) -> None:
    """Run a command; its output is the message of the failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def tensor(array: np.ndarray | None) -> Tensor:
    """A view: `array` must be kept alive."""
    if array is None:
        return Tensor(None, 0)
    assert array.flags.c_contiguous
    return Tensor(array.ctypes.data, array.nbytes)


def floats(array: np.ndarray | None) -> Any:
    """A pointer to float32."""
    if array is None:
        return None
    assert array.dtype == np.float32 and array.flags.c_contiguous
    return array.ctypes.data_as(c.POINTER(c.c_float))


def integers(array: np.ndarray) -> Any:
    """A pointer to int32."""
    assert array.dtype == np.int32 and array.flags.c_contiguous
    return array.ctypes.data_as(c.POINTER(c.c_int32))


class Library:
    """The loaded library; its functions by their names without the prefix."""

    def __init__(self, path: Path) -> None:
        self._library = c.CDLL(str(path))
        for name in (
            "linear_int4_workspace",
            "head_workspace",
            "attention_workspace",
            "moe_ffn_workspace",
            "session_saved_bytes",
        ):
            self.function(name).restype = c.c_size_t
        self.function("runtime_cpu_path").restype = c.c_char_p
        self.function("cpu_path_name").restype = c.c_char_p

    def function(self, name: str) -> Any:
        return getattr(self._library, f"mobilemoe_{name}")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a status; raise KernelError unless it is OK."""
        error = Error()
        status = self.function(name)(*arguments, c.byref(error))
        assert status == error.status
        if status != OK:
            raise KernelError(error)

    def cpu_paths(self) -> list[str]:
        """The code paths of this CPU, fastest first."""
        names = []
        while (name := self.function("cpu_path_name")(len(names))) is not None:
            names.append(name.decode())
        return names

    def runtime(
        self, precision: str = "exact", threads: int = 2, cpu_path: str | None = None
    ) -> Runtime:
        return Runtime(self, precision, threads, cpu_path)


class Handle:
    """A handle that is destroyed with its object."""

    kind = ""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.pointer = c.c_void_p()

    def __del__(self) -> None:
        self.library.function(f"{self.kind}_destroy")(self.pointer)


class Runtime(Handle):
    """A runtime, and the operators on numpy arrays."""

    kind = "runtime"

    def __init__(
        self, library: Library, precision: str, threads: int, cpu_path: str | None
    ) -> None:
        super().__init__(library)
        options = RuntimeOptions(
            PRECISIONS[precision], threads, None if cpu_path is None else cpu_path.encode()
        )
        library.call("runtime_create", c.byref(options), c.byref(self.pointer))

    @property
    def cpu_path(self) -> str:
        return str(self.library.function("runtime_cpu_path")(self.pointer).decode())

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


class Model(Handle):
    """A model over arrays that `keep` holds alive."""

    kind = "model"

    def __init__(self, runtime: Runtime, config: Config, weights: Weights, keep: Any) -> None:
        super().__init__(runtime.library)
        self.runtime, self.keep, self.vocab_size = runtime, keep, config.vocab_size
        self.library.call(
            "model_create",
            runtime.pointer,
            c.byref(config),
            c.byref(weights),
            c.byref(self.pointer),
        )

    def session(self, context: int = 64, cache: str = "float32", block: int = 32) -> Session:
        return Session(self, context, cache, block)


class Session(Handle):
    """A session on numpy arrays."""

    kind = "session"

    def __init__(self, model: Model, context: int, cache: str, block: int) -> None:
        super().__init__(model.library)
        self.model = model
        options = SessionOptions(context, CACHES[cache], block)
        self.library.call("session_create", model.pointer, c.byref(options), c.byref(self.pointer))

    @property
    def position(self) -> int:
        return int(self.library.function("session_position")(self.pointer))

    def feed(self, tokens: Any, all_logits: bool = False) -> np.ndarray:
        """float32 [tokens or 1, vocabulary]."""
        ids = np.ascontiguousarray(tokens, np.int32)
        rows = len(ids) if all_logits else 1
        logits = np.full((rows, self.model.vocab_size), np.nan, np.float32)
        which = 2 if all_logits else 1
        self.library.call(
            "session_feed", self.pointer, integers(ids), len(ids), which, floats(logits)
        )
        return logits

    def rewind(self, position: int) -> None:
        self.library.call("session_rewind", self.pointer, position)

    def cancel(self) -> None:
        self.library.function("session_cancel")(self.pointer)

    def save(self) -> np.ndarray:
        saved = np.empty(self.library.function("session_saved_bytes")(self.pointer), np.uint8)
        self.library.call("session_save", self.pointer, *_pointer_and_size(saved))
        return saved

    def load(self, saved: np.ndarray) -> None:
        self.library.call("session_load", self.pointer, *_pointer_and_size(saved))


def _pointer_and_size(array: np.ndarray) -> tuple[Any, Any]:
    return c.c_void_p(array.ctypes.data), c.c_size_t(array.nbytes)
