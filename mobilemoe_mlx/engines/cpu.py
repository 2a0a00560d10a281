"""The engine that runs on the CPU kernel: INT4 weights in place, in the file's memory map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mobilemoe_mlx import text_table
from mobilemoe_mlx.checkpoint.check import Checkpoint, check_scales, open_checkpoint
from mobilemoe_mlx.checkpoint.damage import check_finite
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.checkpoint.mapped import MappedTensors
from mobilemoe_mlx.checkpoint.rewrite import published_int4
from mobilemoe_mlx.checkpoint.tensor_file import Tensor
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.cpu_kernel import library, structures
from mobilemoe_mlx.engines.cpu_experts import expert_files
from mobilemoe_mlx.engines.cpu_weights import expert_names, kernel_model
from mobilemoe_mlx.engines.engine import (
    PREFILL_TOKENS,
    Adapters,
    Engine,
    Session,
    check_choice,
)
from mobilemoe_mlx.errors import UserError
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
        expert_memory: int | None = None,
    ) -> None:
        """Options and errors as in `open`; a BF16 `checkpoint` is rounded to INT4, in memory."""
        check_choice("precision", precision, structures.PRECISIONS)
        if cache is None:
            cache = "float32" if precision == "exact" else "float16"
        check_choice("cache", cache, structures.CACHE_TYPES)
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
        tensors = published.tensors
        self.expert_files, source = None, None
        if expert_memory is not None:
            if not self.args.num_local_experts:
                raise UserError(
                    f"{self.folder} is a dense model, without experts to be read when they are "
                    "needed: leave out the memory for experts."
                )
            tensors = _without_experts(tensors, self.args)
        self.tensors = MappedTensors(tensors, large_pages=expert_memory is None)
        try:
            if expert_memory is not None:
                self.expert_files = expert_files(loaded, checkpoint, self.args)
                source = self.expert_files.source(expert_memory)
            runtime = library.Runtime(loaded, precision, threads, cpu_path)
            self.model = kernel_model(
                runtime, self.args, self.tensors.arrays, source, self.expert_files
            )
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
        expert_memory: int | None = None,
        adapters: Adapters = (),
    ) -> CPUEngine:
        """Map the INT4 checkpoint in `folder`, of either form.

        `precision` of activations in matrix products: "exact" (float32), "int16" (near exact) or
        "int8" (the paper's, fastest). `threads`: 1 to 16, by default one per CPU. `cache`: keys and
        values as "float32" (default for exact), "float16" (default) or "int8". `cpu_path`: the
        instructions to use, by default the fastest of this CPU. `expert_memory`: bytes for routed
        experts, which are then read from the file when they are needed, and those kept that were
        used most lately; by default all are mapped. Results do not depend on it. Raises UserError
        for all that is wrong with the folder or an option, for a BF16 checkpoint, and for
        `adapters`.
        """
        if expert_memory is not None and (type(expert_memory) is not int or expert_memory < 0):
            raise UserError(f"expert_memory is {expert_memory!r}; it must be a number of bytes.")
        if adapters:
            names = " ".join(str(path) for path, _ in adapters)
            raise UserError(
                "The CPU engine takes no adapters: use the engine 'mlx', or fuse them first: "
                f"mobilemoe fuse {folder} {names} OUTPUT --to int4."
            )
        checkpoint = open_checkpoint(folder)
        if checkpoint.layout is Layout.FLOAT:
            raise UserError(
                f"{folder} is BF16, and the CPU engine computes with INT4 weights: use the engine "
                f"'mlx', or round it first: mobilemoe convert {folder} OUTPUT --quantize."
            )
        return cls(
            checkpoint,
            precision=precision,
            threads=threads,
            cache=cache,
            cpu_path=cpu_path,
            expert_memory=expert_memory,
        )

    def describe(self) -> str:
        """Layers and width, bytes of the weights, and how it computes."""
        size = sum(array.nbytes for array in self.tensors.arrays.values())
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        experts = ""
        if self.expert_files is not None:
            total = self.args.num_hidden_layers * self.args.num_local_experts
            held = self.model.expert_counters.held
            experts = f" and memory for {held:,} of {total:,} experts"
        how = f"{self.model.runtime.cpu_path}, {threads}, {self.precision}"
        return (
            f"a model of {self.args.num_hidden_layers} layers x {self.args.hidden_size} in INT4, "
            f"{text_table.size(size)}{experts}, on the CPU ({how})"
        )

    def expert_reads(self) -> dict[str, int] | None:
        """As the interface says; an expert counts once for each layer's block of tokens."""
        if self.expert_files is None:
            return None
        counters = self.model.expert_counters
        return {name: getattr(counters, name) for name in ("hits", "misses", "bytes_read")}

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

    def experts(self, count: int) -> np.ndarray:
        """The experts that the last `count` tokens chose, which one `feed` of at most
        PREFILL_TOKENS computed: int32 [layers, count, slots]; a dense model has none."""
        if not self.engine.args.num_local_experts:
            return np.zeros((self.engine.args.num_hidden_layers, count, 0), np.int32)
        return self._session.experts(count)

    def _feed(self, token_ids: list[int], all_logits: bool) -> np.ndarray:
        self.engine.tensors.check()
        try:
            return self._session.feed(token_ids, all_logits)
        except library.KernelError as error:
            if error.status != structures.READ_FAILED:
                raise
            raise UserError(f"{error} Copy the checkpoint again, and load it anew.") from None


def _without_experts(tensors: Mapping[str, Tensor], args: ModelArgs) -> dict[str, Tensor]:
    experts = {name for layer in range(args.num_hidden_layers) for name in expert_names(layer)}
    return {name: tensor for name, tensor in tensors.items() if name not in experts}
