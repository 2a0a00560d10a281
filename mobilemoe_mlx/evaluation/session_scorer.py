"""The scorer of any engine: a session is fed each batch's trees, and rewound where they branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mobilemoe_mlx.engines import Engine
from mobilemoe_mlx.evaluation.batches import common_lengths, sorted_texts
from mobilemoe_mlx.evaluation.scorer import GenerationRequest, LogLikelihood, Scorer, ScoringRequest
from mobilemoe_mlx.evaluation.target_scores import target_scores
from mobilemoe_mlx.evaluation.token_trees import TokenTrees
from mobilemoe_mlx.evaluation.wanted import wanted
from mobilemoe_mlx.generate import Step, stream
from mobilemoe_mlx.tokenizer import ChatTokenizer

# Tokens whose logits are asked for at once: 128,256 float32 each for the published vocabulary.
_ROWS = 64


class SessionScorer(Scorer):
    """One session, whose tokens are kept as far as the next text begins with them."""

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer) -> None:
        super().__init__(engine, tokenizer)
        self._session = engine.session()
        self._shared: tuple[int, ...] = ()  # what the session's tokens begin with

    def log_likelihoods(
        self, requests: Sequence[ScoringRequest], shared: int = 0
    ) -> list[LogLikelihood]:
        """As the interface says."""
        self._begin_with(requests[0].context[:shared])
        of = wanted(requests, shared)
        order = np.argsort(of.rows, kind="stable")  # targets, by the row that predicts them
        rows, targets = of.rows[order], of.targets[order]
        values, is_best = np.empty(len(order)), np.empty(len(order), bool)
        start = 0
        for logits in self._walk(of.trees, np.isin(np.arange(len(of.trees.tokens)), of.nodes)):
            lot = slice(*np.searchsorted(rows, (start, start + len(logits))))
            scores = target_scores(logits, rows[lot] - start, targets[lot])
            values[order[lot]], is_best[order[lot]] = scores
            start += len(logits)
        return of.answers(values, is_best)

    def generate(self, requests: Sequence[GenerationRequest], shared: int = 0) -> list[list[int]]:
        """As the interface says."""
        self._begin_with(requests[0].prompt[:shared])
        prompts = [np.array(request.prompt) for request in requests]
        order = sorted_texts(prompts)
        kept = [shared, *common_lengths([prompts[i] for i in order])]
        answers: list[list[int]] = [[] for _ in requests]
        for index, common in zip(order, kept, strict=True):
            request = requests[index]
            self._session.rewind(min(common, len(request.prompt) - 1))
            rest = request.prompt[self._session.position :]
            steps = stream(self._session, self.tokenizer, rest, request.options)
            answers[index] = [step.token for step in steps if isinstance(step, Step)]
        return answers

    def _begin_with(self, tokens: tuple[int, ...]) -> None:
        """Leave `tokens`, and nothing else, in the session; they are always fed at once."""
        if tokens != self._shared:
            self._session.rewind(0)
            self._shared = ()
            if tokens:
                self._session.feed(tokens)
            self._shared = tokens
        self._session.rewind(len(tokens))

    def _walk(self, trees: TokenTrees, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """The logits of the `wanted` nodes, bool [nodes], in order: float32 [some, vocabulary]."""
        start, count = 0, len(trees.tokens)
        while start < count:
            end = start + 1
            while (
                end < count
                and end < trees.ends[end - 1]  # the next node is a child
                and wanted[end] == wanted[start]
                and not (wanted[start] and end - start == _ROWS)
            ):
                end += 1
            self._session.rewind(int(trees.positions[start]))
            logits = self._session.feed(trees.tokens[start:end].tolist(), bool(wanted[start]))
            if wanted[start]:
                yield logits
            start = end
