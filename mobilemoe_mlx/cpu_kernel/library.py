"""Finds and loads the library, and calls it: numpy arrays in and out, errors as UserError."""

from __future__ import annotations

import ctypes as c
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe_mlx.cpu_kernel import structures as s
from mobilemoe_mlx.cpu_kernel.not_built import BUILD_AGAIN, not_built
from mobilemoe_mlx.errors import UserError

PATH = Path(__file__).with_name(
    "libmobilemoe.dylib" if sys.platform == "darwin" else "libmobilemoe.so"
)


class KernelError(UserError):
    """A call that failed: the library's sentence, and its code (`structures.BAD_ARGUMENT`, ...)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def is_built() -> bool:
    """Whether the library was compiled with this package."""
    return PATH.is_file()


def load() -> Library:
    """This package's library; raises UserError, saying what to install, where there is none."""
    if not is_built():
        raise not_built("The CPU engine is not there: its library", "Or use the engine 'mlx'.")
    try:
        library = Library(PATH)
        version = library.function("abi_version")()
    except (OSError, AttributeError) as error:
        raise UserError(
            f"{PATH} cannot be loaded ({error}): build it again, {BUILD_AGAIN}."
        ) from None
    if version != s.ABI_VERSION:
        raise UserError(
            f"{PATH} has version {version} of the kernel's interface, and this package needs "
            f"{s.ABI_VERSION}: build it again, {BUILD_AGAIN}."
        )
    return library


def default_threads() -> int:
    """One for each CPU that this process may use, as far as the library has use for them."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(cpus, s.MOST_THREADS)


def check_threads(threads: int, what: str = "the CPU engine") -> None:
    """Raise UserError for a number of threads that the library does not take, nor `what`."""
    if not 1 <= threads <= s.MOST_THREADS:
        raise UserError(f"{threads} threads: {what} takes 1 to {s.MOST_THREADS}.")


def tensor(array: np.ndarray | None) -> s.Tensor:
    """A view of a dense array, which must be kept alive as long as what is made of the view."""
    if array is None:
        return s.Tensor(None, 0)
    if not array.flags.c_contiguous:
        raise ValueError("the array is not dense")
    return s.Tensor(array.ctypes.data, array.nbytes)


def floats(array: np.ndarray | None) -> Any:
    """A pointer to a dense float32 array."""
    return _pointer(array, np.float32, c.c_float)


def integers(array: np.ndarray) -> Any:
    """A pointer to a dense int32 array."""
    return _pointer(array, np.int32, c.c_int32)


def _pointer(array: np.ndarray | None, dtype: type, kind: type) -> Any:
    if array is None:
        return None
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"the array is not dense {dtype.__name__}")
    return array.ctypes.data_as(c.POINTER(kind))


class Library:
    """The loaded library; its functions go by their names without the prefix."""

    def __init__(self, path: Path) -> None:
        self._library = c.CDLL(str(path))
        self.function("session_saved_bytes").restype = c.c_size_t
        self.function("least_expert_memory").restype = c.c_size_t
        self.function("runtime_cpu_path").restype = c.c_char_p
        self.function("cpu_path_name").restype = c.c_char_p

    def function(self, name: str) -> Any:
        """A function of the library, for ctypes."""
        return getattr(self._library, f"mobilemoe_{name}")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that takes an error last; raises KernelError unless it returns OK."""
        error = s.Error()
        status = self.function(name)(*arguments, c.byref(error))
        if status != s.OK:
            raise KernelError(status, error.message.decode("utf-8", "replace"))

    def cpu_paths(self) -> list[str]:
        """The code paths that this CPU can run, fastest first."""
        names: list[str] = []
        while (name := self.function("cpu_path_name")(len(names))) is not None:
            names.append(name.decode())
        return names

    def rope_periods(self, head_dim: int, theta: float, scaling: Sequence[float]) -> np.ndarray:
        """float32 [head_dim / 2]; `scaling`: factor, low and high frequency factor, positions."""
        periods = np.empty(head_dim // 2, np.float32)
        numbers = (c.c_double(value) for value in (theta, *scaling))
        self.call("rope_periods", head_dim, *numbers, floats(periods))
        return periods


class Handle:
    """A handle that is destroyed with its object; it keeps alive what it depends on."""

    kind = ""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.pointer = c.c_void_p()

    def __del__(self) -> None:
        self.library.function(f"{self.kind}_destroy")(self.pointer)


class Runtime(Handle):
    """A precision, a pool of threads and a code path (None: the fastest)."""

    kind = "runtime"

    def __init__(
        self,
        library: Library,
        precision: str = "exact",
        threads: int = 2,
        cpu_path: str | None = None,
    ) -> None:
        """`precision`: a key of `structures.PRECISIONS`. Raises KernelError."""
        super().__init__(library)
        path = None if cpu_path is None else cpu_path.encode()
        options = s.RuntimeOptions(s.PRECISIONS[precision], threads, path)
        library.call("runtime_create", c.byref(options), c.byref(self.pointer))

    @property
    def cpu_path(self) -> str:
        """The code path in use."""
        return str(self.library.function("runtime_cpu_path")(self.pointer).decode())


class ExpertFiles(Handle):
    """The files that routed experts are read from."""

    kind = "expert_files"

    def __init__(self, library: Library, config: s.Config, layers: c.Array[s.ExpertParts]) -> None:
        """Opens the files; raises KernelError for those that cannot be."""
        super().__init__(library)
        library.call("expert_files_create", c.byref(config), c.byref(layers), c.byref(self.pointer))

    def source(self, memory_bytes: int) -> s.ExpertSource:
        """What a model reads its experts from; it must not outlive this object."""
        source = s.ExpertSource()
        size = c.c_size_t(memory_bytes)
        self.library.function("expert_files_source")(self.pointer, size, c.byref(source))
        return source

    def keep_pages(self, keep: bool) -> None:
        """Whether what was read may stay in the system's page cache (at first, yes)."""
        self.library.function("expert_files_keep_pages")(self.pointer, int(keep))


class Model(Handle):
    """A model over weights that `keep` holds alive."""

    kind = "model"

    def __init__(self, runtime: Runtime, config: s.Config, weights: s.Weights, keep: Any) -> None:
        """Raises KernelError for sizes and tensors that do not fit together."""
        super().__init__(runtime.library)
        self.runtime, self.keep, self.vocab_size = runtime, keep, int(config.vocab_size)
        self.num_hidden_layers = int(config.num_hidden_layers)
        self.num_experts_per_tok = int(config.num_experts_per_tok)
        self.library.call(
            "model_create",
            runtime.pointer,
            c.byref(config),
            c.byref(weights),
            c.byref(self.pointer),
        )

    @property
    def expert_counters(self) -> s.ExpertCounters:
        """What its expert source was asked for; zeros without one."""
        counters = s.ExpertCounters()
        self.library.function("model_expert_counters")(self.pointer, c.byref(counters))
        return counters

    def session(self, context: int, cache: str = "float32", block: int = 512) -> Session:
        """A session of `context` positions.

        `cache`: a key of `structures.CACHE_TYPES`. `block`: the most tokens computed together, for
        which scratch memory is held. Raises KernelError.
        """
        return Session(self, context, cache, block)


class Session(Handle):
    """A key/value cache of a fixed number of positions, and the way to fill it."""

    kind = "session"

    def __init__(self, model: Model, context: int, cache: str, block: int) -> None:
        super().__init__(model.library)
        self.model = model
        options = s.SessionOptions(context, s.CACHE_TYPES[cache], block)
        self.library.call("session_create", model.pointer, c.byref(options), c.byref(self.pointer))

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return int(self.library.function("session_position")(self.pointer))

    def feed(self, tokens: Sequence[int] | np.ndarray, all_logits: bool = False) -> np.ndarray:
        """Append tokens; -> float32 [tokens or 1, vocabulary]. Raises KernelError."""
        ids = np.ascontiguousarray(tokens, np.int32)
        logits = np.empty((len(ids) if all_logits else 1, self.model.vocab_size), np.float32)
        which = s.LOGITS_ALL if all_logits else s.LOGITS_LAST
        self.library.call(
            "session_feed", self.pointer, integers(ids), len(ids), which, floats(logits)
        )
        return logits

    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on."""
        self.library.call("session_rewind", self.pointer, position)

    def experts(self, count: int) -> np.ndarray:
        """The experts that the last `count` tokens chose, by falling score.

        -> int32 [layers, count, num_experts_per_tok]. Raises KernelError for a dense model, and for
        more tokens than were computed together last.
        """
        chosen = np.empty(
            (self.model.num_hidden_layers, count, self.model.num_experts_per_tok), np.int32
        )
        self.library.call("session_experts", self.pointer, count, integers(chosen))
        return chosen

    def cancel(self) -> None:
        """Make the running call, or else the next one, fail; from any thread."""
        self.library.function("session_cancel")(self.pointer)

    def save(self) -> np.ndarray:
        """The cache's content: uint8 [bytes]."""
        saved = np.empty(self.library.function("session_saved_bytes")(self.pointer), np.uint8)
        self.library.call("session_save", self.pointer, *pointer_and_size(saved))
        return saved

    def load(self, saved: np.ndarray) -> None:
        """Take over the content that another session of the same shape saved."""
        self.library.call("session_load", self.pointer, *pointer_and_size(saved))


def pointer_and_size(array: np.ndarray) -> tuple[c.c_void_p, c.c_size_t]:
    """An array as two arguments: void *, size_t."""
    return c.c_void_p(array.ctypes.data), c.c_size_t(array.nbytes)
