"""The scorer of an MLX model: a batch's trees in one forward pass, answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import BatchKVCache

from mobilemoe_mlx import linux_cpu
from mobilemoe_mlx.checkpoint.damage import non_finite_error
from mobilemoe_mlx.engines.mlx import MLXEngine
from mobilemoe_mlx.evaluation.packed_forward import KeysValues, hidden_states
from mobilemoe_mlx.evaluation.scorer import GenerationRequest, LogLikelihood, Scorer, ScoringRequest
from mobilemoe_mlx.evaluation.target_scores import target_scores
from mobilemoe_mlx.evaluation.token_trees import token_trees
from mobilemoe_mlx.evaluation.wanted import wanted
from mobilemoe_mlx.generate import Answer
from mobilemoe_mlx.sampling import Sampler
from mobilemoe_mlx.tokenizer import ChatTokenizer

# Logits that are computed at once: 64 MB of float32.
_LOGITS = 1 << 24


class MLXScorer(Scorer):
    """A model in MLX; the keys and values of what a batch's texts begin with are kept."""

    def __init__(self, engine: MLXEngine, tokenizer: ChatTokenizer) -> None:
        super().__init__(engine, tokenizer)
        self.model = engine.model
        self._shared: tuple[int, ...] = ()
        self._keys_values: list[KeysValues] | None = None  # of the shared tokens, by layer
        linux_cpu.keep_freed_memory()
        linux_cpu.use_threads_for(engine.args.hidden_size)

    def log_likelihoods(
        self, requests: Sequence[ScoringRequest], shared: int = 0
    ) -> list[LogLikelihood]:
        """As the interface says."""
        before = self._begin_with(requests[0].context[:shared])
        of = wanted(requests, shared)
        hidden = hidden_states(self.model, of.trees, before, of.nodes)
        order = np.argsort(of.rows, kind="stable")  # targets, by the row that predicts them
        rows, targets = of.rows[order], of.targets[order]
        values, is_best = np.empty(len(order)), np.empty(len(order), bool)
        step = max(1, _LOGITS // self.engine.args.vocab_size)
        for start in range(0, len(of.nodes), step):
            lot = slice(*np.searchsorted(rows, (start, start + step)))
            logits = self.model.logits(hidden[start : start + step])
            scores = target_scores(logits, rows[lot] - start, targets[lot])
            values[order[lot]], is_best[order[lot]] = scores
        if not np.isfinite(values).all():
            raise non_finite_error(self.engine.folder)
        return of.answers(values, is_best)

    def generate(self, requests: Sequence[GenerationRequest], shared: int = 0) -> list[list[int]]:
        """As the interface says. Sampled answers are made one by one, each by its own seed."""
        before = self._begin_with(requests[0].prompt[:shared])
        sampled = [i for i, request in enumerate(requests) if request.options.temperature]
        greedy = [i for i in range(len(requests)) if i not in sampled]
        answers: list[list[int]] = [[] for _ in requests]
        for lot in ([greedy] if greedy else []) + [[i] for i in sampled]:
            found = self._continue([requests[i] for i in lot], before, shared)
            for i, tokens in zip(lot, found, strict=True):
                answers[i] = tokens
        return answers

    def _continue(
        self,
        requests: Sequence[GenerationRequest],
        before: list[KeysValues] | None,
        shared: int,
    ) -> list[list[int]]:
        """The answers of prompts that are continued side by side."""
        cache, hidden = self._prefill(requests, before, shared)
        samplers = [Sampler(each.options, self.engine.args.vocab_size) for each in requests]
        texts = [Answer(self.tokenizer, each.options, each.options.max_tokens) for each in requests]
        answers: list[list[int]] = [[] for _ in requests]
        open_ones = list(range(len(requests)))
        while True:
            logits = np.asarray(self.model.logits(hidden).astype(mx.float32))
            if not np.isfinite(logits).all():
                raise non_finite_error(self.engine.folder)
            for row, i in enumerate(open_ones):
                token = samplers[i].choose([*requests[i].prompt, *answers[i]], logits[row])
                answers[i].append(token)
                texts[i].add(token)
            kept = [row for row, i in enumerate(open_ones) if not texts[i].finish_reason]
            if not kept:
                return answers
            if len(kept) < len(open_ones):
                open_ones = [open_ones[row] for row in kept]
                for layer in cache:
                    layer.filter(mx.array(kept))
            last = mx.array([[answers[i][-1]] for i in open_ones])
            hidden = self.model.model(last, cache)[:, 0]

    def _prefill(
        self,
        requests: Sequence[GenerationRequest],
        before: list[KeysValues] | None,
        shared: int,
    ) -> tuple[list[BatchKVCache], mx.array]:
        """A cache of the prompts, and the hidden states of their last tokens [prompts, hidden]."""
        trees = token_trees([np.array(request.prompt) for request in requests], shared)
        own: list[KeysValues] = []
        last = np.array([path[-1] for path in trees.paths])
        hidden = hidden_states(self.model, trees, before, last, own)
        lengths = [shared + len(path) for path in trees.paths]
        padding = [max(lengths) - length for length in lengths]
        # Of each place, where its keys are among the shared ones and then the nodes' own.
        places = np.zeros((len(requests), max(lengths)), np.int32)
        for row, start, path in zip(places, padding, trees.paths, strict=True):
            row[start : start + shared] = np.arange(shared)
            row[start + shared :] = shared + path
        cache = []
        for layer, keys_values in enumerate(own):
            parts = list(keys_values)
            if before is not None:
                parts = [
                    mx.concatenate(both, axis=1) for both in zip(before[layer], parts, strict=True)
                ]
            entry = BatchKVCache(padding)
            entry.update_and_fetch(*(x[:, mx.array(places)].swapaxes(0, 1) for x in parts))
            cache.append(entry)
        return cache, hidden

    def _begin_with(self, tokens: tuple[int, ...]) -> list[KeysValues] | None:
        """The keys and values of `tokens`, which are computed where the last batch had others."""
        if tokens != self._shared:
            self._shared, self._keys_values = (), None
            if tokens:
                kept: list[KeysValues] = []
                trees = token_trees([np.array(tokens)])
                hidden_states(self.model, trees, wanted=np.array([0]), keep=kept)
                mx.eval(kept)
                self._keys_values = kept
            self._shared = tokens
        return self._keys_values
