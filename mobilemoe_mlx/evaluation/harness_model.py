"""lm-evaluation-harness's model over a scorer: what its `hf` model does, to the letter.

A text is encoded as the tokenizer does, with the token that begins a text before it, unless the
text begins with that token already, as chat templates' texts do. A context and its continuation are
encoded together, and the continuation is what follows the context's own tokens. An empty context is
the token that begins a text. `loglikelihood_rolling` scores every token of a text, the one that
begins it included, in windows as long as the model's context.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.evaluation.answer_log import AnswerLog
from mobilemoe_mlx.evaluation.batches import Batch
from mobilemoe_mlx.evaluation.scorer import (
    GenerationRequest,
    LogLikelihood,
    Scorer,
    ScoringRequest,
)
from mobilemoe_mlx.generation_options import GenerationOptions

_Request = TypeVar("_Request", ScoringRequest, GenerationRequest)

# Tokens of an answer where a task does not say how many: those of the harness's `hf` model.
MAX_GEN_TOKS = 256

# What a task may say of generation, besides `until` and the number of tokens.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


class _Unscorable(Exception):
    """A request that cannot be scored: its place among the requests, and why."""

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


class Progress(NamedTuple):
    """How far the requests of one kind are."""

    kind: str  # "log-likelihoods" or "generations"
    requests: int  # done; equal ones count once
    of_requests: int
    tokens: int  # done, answers at their longest included
    of_tokens: int
    from_log: int  # how many of the requests that are done were answered before


class HarnessModel(TemplateLM):
    """What `lm_eval.evaluate` takes as its model."""

    def __init__(
        self,
        scorer: Scorer,
        log: AnswerLog | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """`log`: where the answers of each batch are kept and looked for. Its keys are digests of
        a batch's kind, requests and shared tokens; what the model is, they do not say. `report`
        is called when a batch is done.
        """
        super().__init__()
        self.scorer, self.tokenizer = scorer, scorer.tokenizer
        self.truncated = 0  # texts whose beginning was left out, since they exceed the context
        self._log, self._report = log, report
        # A question's choices follow one another, each with the same context.
        self._encoded = functools.lru_cache(64)(self._encode)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that begins a text, or where there is none, the one that ends it."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """The scorer's context."""
        return self.scorer.context

    @property
    def max_gen_toks(self) -> int:
        """See MAX_GEN_TOKS."""
        return MAX_GEN_TOKS

    @property
    def tokenizer_name(self) -> str:
        """What the harness names the chat template by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; None: the token that begins a text comes first, and once."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._prefix)
        return list(self._encoded(string, add_special_tokens))

    def _encode(self, string: str, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    @functools.cached_property
    def _prefix(self) -> str:
        return str(self.tokenizer.decode([self.prefix_token_id]))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The template's text of a conversation, open at the end for an answer."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the likeliest."""
        try:
            for index, request in enumerate(requests):
                context, continuation = request.args
                _check_text(index, "context", context)
                _check_text(index, "continuation", continuation)
                if not continuation or (not context and not self.tok_encode(continuation, False)):
                    raise _Unscorable(index, f"its continuation {continuation!r} has no tokens")
            return list(super().loglikelihood(requests, disable_tqdm))
        except _Unscorable as error:
            raise UserError(f"{_place(requests, error.index)}: {error}.") from None

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        found = []
        for index, ((_, continuation), context_ids, ids) in enumerate(requests):
            if not ids:
                raise _Unscorable(index, f"its continuation {continuation!r} has no tokens")
            if len(ids) > self.max_length:
                raise _Unscorable(
                    index,
                    f"its continuation has {len(ids)} tokens, and the model takes "
                    f"{self.max_length} with a context",
                )
            found.append(self._scoring_request(context_ids, ids))
        return [(answer.value, answer.is_greedy) for answer in self._score(found)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each text, from the token that begins it."""
        windows: list[ScoringRequest] = []
        counts = []
        for index, (text,) in enumerate(request.args for request in requests):
            if not isinstance(text, str):
                raise UserError(f"{_place(requests, index)}: {text!r:.100} is no text.")
            own = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            before = len(windows)
            windows += [self._scoring_request(*make_disjoint_window(window)) for window in own]
            counts.append(len(windows) - before)
        values = iter(answer.value for answer in self._score(windows))
        return [sum(next(values) for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that continues each context, without the stop string that ends it."""
        eos = self.tokenizer.decode([self.eot_token_id])
        seen: dict[GenerationRequest, int] = {}
        found, stops = [], []
        for text, settings in (request.args for request in requests):
            options = normalize_gen_kwargs(settings, MAX_GEN_TOKS)
            stops.append(handle_stop_sequences(options["until"], eos))
            request = self._generation_request(text, options, stops[-1])
            # A task that samples the same prompt several times wants several answers.
            repeated = seen.get(request, 0)
            seen[request] = repeated + 1
            if request.options.temperature:
                again = dict(vars(request.options), seed=repeated)
                request = GenerationRequest(request.prompt, GenerationOptions(**again))
            found.append(request)
        return [
            postprocess_generated_text(
                self.tokenizer.decode(tokens, skip_special_tokens=True), stop, None
            )
            for tokens, stop in zip(self._generate(found), stops, strict=True)
        ]

    def _scoring_request(self, context: list[int], continuation: list[int]) -> ScoringRequest:
        """As much of the end of both as the model takes."""
        most = self.max_length + 1  # the last token is not computed
        # A context of spaces, which are the continuation's, where no token begins a text.
        context = context or [self.prefix_token_id]
        self.truncated += len(context) + len(continuation) > most
        return ScoringRequest(
            tuple(context[max(0, len(context) + len(continuation) - most) :]), tuple(continuation)
        )

    def _generation_request(
        self, text: str, settings: dict[str, Any], stops: list[str]
    ) -> GenerationRequest:
        known = ("until", "max_gen_toks", "do_sample", *_SAMPLING)
        for name in settings:
            if name not in known:
                raise UserError(
                    f"A task wants to generate with '{name}'{did_you_mean(name, known)}; this "
                    f"takes {', '.join(known)}."
                )
        length = settings["max_gen_toks"]
        most = self.max_length - length
        if most < 1:
            raise UserError(
                f"A task wants answers of {length} tokens, and the model takes {self.max_length} "
                "with the prompt."
            )
        prompt = self.tok_encode(text) or [self.prefix_token_id]
        self.truncated += len(prompt) > most
        sampling = {}
        if settings["do_sample"]:
            sampling = {name: settings[name] for name in _SAMPLING if name in settings}
        options = GenerationOptions(
            max_tokens=length, stop=tuple(stop for stop in stops if stop), **sampling
        )
        return GenerationRequest(tuple(prompt[-most:]), options)

    def _score(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        def answer(batch: Sequence[ScoringRequest], shared: int) -> list[list[Any]]:
            return [[*each] for each in self.scorer.log_likelihoods(batch, shared)]

        unique = list(dict.fromkeys(requests))
        batches = self.scorer.scoring_batches(unique) if unique else []
        sizes = [len(request.context) + len(request.continuation) for request in unique]
        answers = self._answers("log-likelihoods", unique, batches, sizes, answer)
        return [LogLikelihood(*answers[request]) for request in requests]

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        unique = list(dict.fromkeys(requests))
        batches = self.scorer.generation_batches(unique) if unique else []
        sizes = [len(request.prompt) + request.options.max_tokens for request in unique]
        generate = self.scorer.generate
        answers = self._answers("generations", unique, batches, sizes, generate)
        return [answers[request] for request in requests]

    def _answers(
        self,
        kind: str,
        requests: Sequence[_Request],
        batches: Iterable[Batch],
        sizes: Sequence[int],
        answer: Callable[[Sequence[_Request], int], list[Any]],
    ) -> dict[_Request, Any]:
        """Each request's answer, as JSON has it: from the log, or computed and kept there."""
        answers: dict[_Request, Any] = {}
        tokens = from_log = 0
        for batch in batches:
            lot = [requests[i] for i in batch.indices]
            key = _digest(kind, lot, batch.shared)
            known = self._log.get(key) if self._log is not None else None
            found = answer(lot, batch.shared) if known is None else known
            if known is not None:
                from_log += len(lot)
            elif self._log is not None:
                self._log.put(key, found)
            answers.update(zip(lot, found, strict=True))
            tokens += sum(sizes[i] for i in batch.indices)
            self._report(Progress(kind, len(answers), len(requests), tokens, sum(sizes), from_log))
        return answers


def _check_text(index: int, what: str, text: Any) -> None:
    if not isinstance(text, str):
        raise _Unscorable(index, f"its {what} is {text!r:.100}, which is no text")


def _place(requests: Sequence[Instance], index: int) -> str:
    """Which question a request is of, and which of its choices, both from 1."""
    request = requests[index]
    if request.doc_id is None:  # of no task
        return f"request {index + 1}"
    has_choices = sum(each.doc_id == request.doc_id for each in requests) > 1
    choice = f", choice {request.idx + 1}" if has_choices else ""
    return f"question {request.doc_id + 1}{choice}"


def _digest(kind: str, requests: Sequence[Any], shared: int) -> str:
    """SHA-256 of a batch, in hexadecimal digits."""
    plain = [kind, shared, requests]
    text = json.dumps(plain, default=vars, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
