"""The engine that runs an ONNX export in ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mobilemoe_mlx import text_table
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.cpu_kernel import library
from mobilemoe_mlx.engines.engine import (
    PREFILL_TOKENS,
    Adapters,
    Engine,
    Session,
)
from mobilemoe_mlx.engines.onnx_session import (
    all_logits_model,
    check_precision,
    open_session,
    run_session,
)
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.files import parse_json
from mobilemoe_mlx.onnx_folder import names
from mobilemoe_mlx.onnx_folder.folder import PREFIX, WEIGHTS, ONNXFolder, open_onnx_folder

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class ONNXEngine(Engine):
    """An ONNX export in ONNX Runtime."""

    def __init__(
        self, export: ONNXFolder, *, threads: int | None = None, precision: str | None = None
    ) -> None:
        """Options and errors as in `open`."""
        if precision is not None:
            check_precision(export, precision)
        self.precision = precision
        self.export, self.folder = export, export.path
        self.threads = library.default_threads() if threads is None else threads
        library.check_threads(self.threads, "the engine 'onnx'")
        self.runtime = open_session(export, self.threads, precision)
        self._all_logits: onnxruntime.InferenceSession | None = None
        metadata = self.runtime.get_modelmeta().custom_metadata_map
        config = parse_json(metadata.get(f"{PREFIX}config", "{}"), f"The config in {export.model}")
        self.args = ModelArgs.from_dict(config)
        try:
            key = next(i for i in self.runtime.get_inputs() if i.name == names.PAST_KEY % 0)
            self.cache_type, self.head_dim = _TYPES[key.type], key.shape[-1]
        except (StopIteration, KeyError):
            raise UserError(f"{export.model} is damaged: export again.") from None

    @classmethod
    def open(  # type: ignore[override]
        cls,
        folder: Path,
        *,
        threads: int | None = None,
        precision: str | None = None,
        adapters: Adapters = (),
    ) -> ONNXEngine:
        """Load the folder that `mobilemoe export onnx` wrote, of any form.

        `threads`: 1 to 16, by default one per CPU. `precision`: of a fused folder, instead of what
        it was exported with: "exact", "int16" or "int8", as of the CPU engine. Raises
        UserError for all that is wrong with the folder or an option, for an ONNX Runtime that is
        too old, and for `adapters`.
        """
        if adapters:
            raise UserError(
                "The engine 'onnx' takes no adapters: export the checkpoint with them, by "
                "mobilemoe export onnx ... --adapter."
            )
        return cls(open_onnx_folder(folder), threads=threads, precision=precision)

    def describe(self) -> str:
        """Layers and width, bytes of the weights, and how it computes."""
        size = (self.export.path / WEIGHTS).stat().st_size
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"a model of {self.args.num_hidden_layers} layers x {self.args.hidden_size} in INT4, "
            f"{text_table.size(size)}, in ONNX Runtime {onnxruntime.__version__} "
            f"({self.export.form}, {threads})"
        )

    def check_context(self, context: int | None) -> int:
        """The context of a new session: at most the one that the folder was exported with."""
        if (
            context is not None
            and self.export.context < context <= self.args.max_position_embeddings
        ):
            raise UserError(
                f"A context of {context} tokens: this folder was exported with "
                f"{self.export.context}. Export again with --context {context}."
            )
        return super().check_context(self.export.context if context is None else context)

    def session(self, context: int | None = None) -> ONNXSession:
        """A new session; memory for its context is used as it fills."""
        return ONNXSession(self, self.check_context(context))

    def all_logits(self) -> onnxruntime.InferenceSession:
        """The model again with the logits of all tokens, which the saved one does not compute."""
        if self._all_logits is None:
            self._all_logits = open_session(
                self.export, self.threads, self.precision, all_logits_model(self.export)
            )
        return self._all_logits


class ONNXSession(Session):
    """A key/value cache in arrays that ONNX Runtime reads and writes in place."""

    def __init__(self, engine: ONNXEngine, context: int) -> None:
        self.engine: ONNXEngine = engine
        self.context = context
        self._position = 0
        self._bindings: dict[onnxruntime.InferenceSession, Any] = {}
        args = engine.args
        shape = (1, args.num_key_value_heads, context, engine.head_dim)
        self._caches: dict[tuple[str, str], Any] = {
            (past % layer, present % layer): onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros(shape, engine.cache_type)
            )
            for layer in range(args.num_hidden_layers)
            for past, present in (
                (names.PAST_KEY, names.PRESENT_KEY),
                (names.PAST_VALUE, names.PRESENT_VALUE),
            )
        }

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return self._position

    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on."""
        self.check_rewind(position)
        self._position = position

    def _feed(self, token_ids: list[int], all_logits: bool) -> np.ndarray:
        runtime = self.engine.all_logits() if all_logits else self.engine.runtime
        rows = []
        for start in range(0, len(token_ids), PREFILL_TOKENS):
            rows.append(self._call(runtime, token_ids[start : start + PREFILL_TOKENS]))
        return np.concatenate(rows if all_logits else rows[-1:])

    def _call(self, runtime: onnxruntime.InferenceSession, token_ids: list[int]) -> np.ndarray:
        """-> logits float32 [rows, vocabulary]."""
        end = self._position + len(token_ids)
        binding = self._binding(runtime)
        binding.bind_cpu_input(names.INPUT_IDS, np.array([token_ids], np.int64))
        binding.bind_cpu_input(names.ATTENTION_MASK, np.ones((1, end), np.int64))
        binding.bind_output(names.LOGITS)
        run_session(self.engine.export, runtime, binding)
        self._position = end
        logits: np.ndarray = binding.get_outputs()[-1].numpy()
        return logits[0]

    def _binding(self, runtime: onnxruntime.InferenceSession) -> Any:
        """The cache bound once, for doing it again takes a twentieth of a token's time."""
        if runtime not in self._bindings:
            binding = self._bindings[runtime] = runtime.io_binding()
            for (past, present), cache in self._caches.items():
                binding.bind_ortvalue_input(past, cache)
                binding.bind_ortvalue_output(present, cache)
        return self._bindings[runtime]
