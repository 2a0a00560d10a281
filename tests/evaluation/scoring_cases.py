"""Requests that meet every case of a scorer, and PyTorch's answers to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from mobilemoe_mlx.evaluation.scorer import LogLikelihood, ScoringRequest


def scoring_requests(vocabulary: int, longest: int, seed: int = 0) -> list[ScoringRequest]:
    """Of `longest` tokens at most, in a random order.

    Questions after the same 40 tokens, with choices of one token and of more; texts of their own;
    continuations that begin alike or continue each other; contexts that continue each other; a
    context of one token; a text as long as the model takes; and one request twice.
    """
    draw = random.Random(seed)

    def text(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(length))

    found = []
    examples = text(40)
    for _ in range(6):
        context = examples + text(draw.randint(5, 20))
        found += [ScoringRequest(context, text(1)) for _ in range(4)]
    for length in (1, 5, 60):
        context, start = text(length), text(3)
        found += [ScoringRequest(context, start[:n]) for n in (1, 2, 3)]
        found += [ScoringRequest(context, start + text(n)) for n in (1, 4, 15)]
        found.append(ScoringRequest(context + start, text(2)))
    found.append(ScoringRequest(text(longest // 2), text(longest - longest // 2 + 1)))
    found.append(found[3])
    draw.shuffle(found)
    return found


def reference(model: Any, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
    """Each request by itself, from the logits of `model` at every token."""
    torch.set_num_threads(1)  # more only wait for each other in so small a model
    answers = []
    for context, continuation in requests:
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation[:-1]])).logits[0]
        rows = logits[len(context) - 1 :].double()
        targets = torch.tensor(continuation)
        chosen = rows.log_softmax(-1).gather(1, targets[:, None])
        is_greedy = bool((rows.argmax(-1) == targets).all())
        answers.append(LogLikelihood(float(chosen.sum()), is_greedy))
    return answers


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """`count` tokens that continue a prompt, each the likeliest."""
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
