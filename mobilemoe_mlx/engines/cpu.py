"""The engine that runs on the CPU kernel: INT4 weights in place, in the file's memory map."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mobilemoe_mlx import text_table
from mobilemoe_mlx.checkpoint.check import Checkpoint, check_scales, open_checkpoint
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.checkpoint.mapped import MappedTensors
from mobilemoe_mlx.checkpoint.rewrite import published_int4
from mobilemoe_mlx.cpu_kernel import library, structures
from mobilemoe_mlx.engines.cpu_weights import kernel_model
from mobilemoe_mlx.engines.engine import PREFILL_TOKENS, Engine, Session
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.int4_rounding import stored_type


class CPUEngine(Engine):
    """A checkpoint in the CPU kernel."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str = "int16",
        threads: int | None = None,
        cache: str | None = None,
        cpu_path: str | None = None,
    ) -> None:
        """Options and errors as in `open`; a BF16 `checkpoint` is rounded to INT4, in memory."""
        _check_choice("precision", precision, structures.PRECISIONS)
        if cache is None:
            cache = "float32" if precision == "exact" else "float16"
        _check_choice("cache", cache, structures.CACHE_TYPES)
        threads = library.default_threads() if threads is None else threads
        library.check_threads(threads)
        loaded = library.load()
        check_scales(checkpoint)
        # No logit would show them: an expert whose score is NaN is never selected, and rounded
        # activations have no NaN.
        check_finite(checkpoint, lambda name: stored_type(name) is not None)
        published = published_int4(checkpoint)
        self.folder, self.args = checkpoint.folder, published.args
        self.precision, self.cache, self.threads = precision, cache, threads
        self.tensors = MappedTensors(published.tensors)
        try:
            runtime = library.Runtime(loaded, precision, threads, cpu_path)
            self.model = kernel_model(runtime, self.args, self.tensors.arrays)
        except library.KernelError as error:
            raise UserError(f"{self.folder} cannot run on the CPU engine: {error}") from None

    @classmethod
    def open(  # type: ignore[override]
        cls,
        folder: Path,
        *,
        precision: str = "int16",
        threads: int | None = None,
        cache: str | None = None,
        cpu_path: str | None = None,
    ) -> CPUEngine:
        """Map the INT4 checkpoint in `folder`, of either form.

        `precision` of activations in matrix products: "exact" (float32), "int16" (near exact) or
        "int8" (the paper's, fastest). `threads`: 1 to 16, by default one per CPU. `cache`: keys and
        values as "float32" (default for exact), "float16" (default) or "int8". `cpu_path`: the
        instructions to use, by default the fastest of this CPU. Raises UserError for all that is
        wrong with the folder or an option, and for a BF16 checkpoint.
        """
        checkpoint = open_checkpoint(folder)
        if checkpoint.layout is Layout.FLOAT:
            raise UserError(
                f"{folder} is BF16, and the CPU engine computes with INT4 weights: use the engine "
                f"'mlx', or round it first: mobilemoe convert {folder} OUTPUT --quantize."
            )
        return cls(checkpoint, precision=precision, threads=threads, cache=cache, cpu_path=cpu_path)

    def describe(self) -> str:
        """Layers and width, bytes of the weights, and how it computes."""
        size = sum(array.nbytes for array in self.tensors.arrays.values())
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"a model of {self.args.num_hidden_layers} layers x {self.args.hidden_size} in INT4, "
            f"{text_table.size(size)}, on the CPU ({self.model.runtime.cpu_path}, {threads}, "
            f"{self.precision})"
        )

    def session(self, context: int | None = None) -> CPUSession:
        """A new session; memory for its context is used as it fills."""
        return CPUSession(self, self.check_context(context))


class CPUSession(Session):
    """A session of the kernel."""

    def __init__(self, engine: CPUEngine, context: int) -> None:
        self.engine: CPUEngine = engine
        self.context = context
        self._session = engine.model.session(context, engine.cache, PREFILL_TOKENS)

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return self._session.position

    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on."""
        self.check_rewind(position)
        self._session.rewind(position)

    def _feed(self, token_ids: list[int], all_logits: bool) -> np.ndarray:
        self.engine.tensors.check()
        return self._session.feed(token_ids, all_logits)


def _check_choice(what: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(
            f"There is no {what} '{value}'{did_you_mean(value, known)}. Known: {', '.join(known)}."
        )
