"""The engine that runs on MLX: a Mac's GPU, or the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import generation_stream, wired_limit
from mlx_lm.models.cache import trim_prompt_cache

from mobilemoe_mlx import text_table
from mobilemoe_mlx.adapters.load import load_adapted
from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.damage import check_finite, non_finite_error
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.engines import engine
from mobilemoe_mlx.engines.engine import Adapters, Engine, Progress, Session
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.sampling import Sampler
from mobilemoe_mlx.tensor_names import is_always_float32

_CLEAR_EVERY = 256  # tokens between two times that MLX's unused buffers are given back (mlx-lm's)


class MLXEngine(Engine):
    """A model in MLX."""

    def __init__(self, model: Model, folder: Path | None = None) -> None:
        self.model, self.args, self.folder = model, model.args, folder

    @classmethod
    def open(  # type: ignore[override]
        cls, folder: Path, *, dtype: mx.Dtype | None = None, adapters: Adapters = ()
    ) -> MLXEngine:
        """Load `folder`; `dtype` is the type of activations, as in `load_model`.

        `adapters`: folders with weights that are added to it; see `load_adapted`.
        """
        # An expert whose score is NaN is never selected: no logit would show it.
        check_finite(open_checkpoint(folder), is_always_float32)
        if adapters:
            return cls(load_adapted(folder, adapters, dtype), folder)
        return cls(load_model(folder, dtype), folder)

    def describe(self) -> str:
        """Layers and width, form of the weights, bytes in memory, and the device."""
        weights = tree_flatten(self.model.parameters())
        size = sum(array.nbytes for _, array in weights)
        form = "INT4" if self.args.quantized else "float"
        device = str(mx.default_device().type).rpartition(".")[-1]
        return (
            f"a model of {self.args.num_hidden_layers} layers x {self.args.hidden_size} in {form}, "
            f"{text_table.size(size)}, on MLX ({device})"
        )

    def session(self, context: int | None = None) -> MLXSession:
        """A new session; its cache grows with the tokens that are fed."""
        return MLXSession(self, self.check_context(context))


class _Next(NamedTuple):
    """A token that is being computed."""

    token: mx.array  # int [1]
    finite: mx.array  # bool []: whether the logits it was chosen by are


class MLXSession(Session):
    """mlx-lm's key/value cache."""

    def __init__(self, engine: MLXEngine, context: int) -> None:
        self.engine: MLXEngine = engine
        self.context = context
        self._cache: list[Any] = engine.model.make_cache()

    @property
    def position(self) -> int:
        """How many tokens the cache holds."""
        return int(self._cache[0].offset)

    def rewind(self, position: int) -> None:
        """Forget all tokens from `position` on."""
        self.check_rewind(position)
        trim_prompt_cache(self._cache, self.position - position)

    def _feed(self, token_ids: list[int], all_logits: bool) -> np.ndarray:
        model = self.engine.model
        rows = []
        for start in range(0, len(token_ids), engine.PREFILL_TOKENS):
            lot = mx.array([token_ids[start : start + engine.PREFILL_TOKENS]])
            hidden = model.model(lot, self._cache)
            is_last = start + engine.PREFILL_TOKENS >= len(token_ids)
            if all_logits or is_last:
                logits = model.logits(hidden if all_logits else hidden[:, -1:])
                rows.append(np.array(logits[0].astype(mx.float32)))
            else:
                mx.eval([entry.state for entry in self._cache])
        return np.concatenate(rows)

    def generate(
        self,
        token_ids: Sequence[int],
        sampler: Sampler,
        max_tokens: int,
        progress: Progress | None = None,
    ) -> Iterator[int]:
        """As the interface says; each token is fed while it is yielded, as in mlx-lm.

        So the GPU computes the next token while this one is printed.
        """
        tokens = self.check_tokens(token_ids)
        progress = progress or (lambda done, total: None)
        with wired_limit(self.engine.model, [generation_stream]):
            self._prefill(tokens[:-1], len(tokens), progress)
            history = mx.array(tokens)
            now = self._next(history, sampler)
            mx.eval(now)
            progress(len(tokens), len(tokens))
            for count in range(max_tokens):
                history = mx.concatenate([history, now.token])
                following = self._next(history, sampler)
                if not now.finite.item():
                    raise non_finite_error(self.engine.folder)
                yield int(now.token.item())
                if count % _CLEAR_EVERY == 0:
                    mx.clear_cache()
                now = following

    def _prefill(self, tokens: list[int], total: int, progress: Progress) -> None:
        """Feed `tokens`, whose logits nobody needs, of a prompt of `total`."""
        progress(0, total)
        for start in range(0, len(tokens), engine.PREFILL_TOKENS):
            lot = tokens[start : start + engine.PREFILL_TOKENS]
            with mx.stream(generation_stream):
                self.engine.model(mx.array([lot]), self._cache)
                mx.eval([entry.state for entry in self._cache])
            progress(start + len(lot), total)
            mx.clear_cache()

    def _next(self, history: mx.array, sampler: Sampler) -> _Next:
        """Feed the last token of `history` and begin to compute the one after it."""
        with mx.stream(generation_stream):
            logits = self.engine.model(history[-1:][None], self._cache)[:, -1, :]
            following = _Next(sampler(history, logits), mx.isfinite(logits).all())
            mx.async_eval(following)
        return following
