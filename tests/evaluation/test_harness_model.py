"""The harness's model: what its own `hf` model answers, request by request and in whole tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")  # which the harness's `hf` model imports

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from small_model import small_args
from small_tasks import GROUP, write_tasks
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from varied_model import write_varied

from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.evaluation.answer_log import AnswerLog
from mobilemoe_mlx.evaluation.harness_model import HarnessModel, Progress
from mobilemoe_mlx.evaluation.open_scorer import open_scorer
from mobilemoe_mlx.tokenizer import load_tokenizer

CONTEXT = 96
LIMIT = 1e-4  # both compute in float32
TEXT = "import os\n\ndef wrap(text, width):\n    return [line.strip() for line in text]\n"


class Config(PretrainedConfig):
    """What the harness and transformers ask a model's configuration for."""

    model_type = "reference"


class Reference(PreTrainedModel, GenerationMixin):
    """Our PyTorch reference, as a model of transformers."""

    config_class = Config

    def __init__(self, folder: Path) -> None:
        tokenizer = load_tokenizer(folder)
        super().__init__(
            Config(
                max_position_embeddings=CONTEXT,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=sorted(tokenizer.eos_token_ids),
                vocab_size=480,
                num_hidden_layers=1,  # of the cache that transformers makes
            )
        )
        self.reference = load_torch_model(folder)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=self.reference(input_ids).logits)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids}  # all of them: there is no cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    args = small_args(
        num_hidden_layers=1,
        vocab_size=480,
        bos_token_id=1,
        eos_token_id=(2,),
        max_position_embeddings=CONTEXT,
    )
    return write_varied(tmp_path_factory.mktemp("model") / "int4", args, tokenizer_folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(1)
    tokenizer = load_tokenizer(folder)._tokenizer
    # Its cache of logits takes a wrong row where two requests cut one text at two places.
    return HFLM(pretrained=Reference(folder), tokenizer=tokenizer, batch_size=1, logits_cache=False)


@pytest.fixture
def ours(folder: Path) -> HarnessModel:
    return HarnessModel(open_scorer(folder, "mlx"))


def ask(model: Any, kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    requests = [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]
    return list(getattr(model, kind)(requests))


PAIRS = [
    ("import os", " import"),
    ("import os", "\n\ndef"),
    ("import os", " "),
    ("import os ", "import sys"),  # the space moves
    ("import os\n\n  ", "return text"),
    ("", "import os"),
    ("", "<|begin_of_text|>import os"),
    ("<|begin_of_text|>import", " os"),
    ("def wrap(", "text, width):\n    return"),
    ("def wrap(", "text, width):\n    retur"),
    (TEXT, "    x"),
    (TEXT * 4, " longer than the context"),
    ("é", "ü \U0001f40d"),
    ("import os", " import"),
]


def test_log_likelihoods_are_the_harness_own(ours: HarnessModel, theirs: Any) -> None:
    found, wanted = (ask(model, "loglikelihood", *PAIRS) for model in (ours, theirs))
    for pair, (value, is_greedy), (their_value, their_greedy) in zip(
        PAIRS, found, wanted, strict=True
    ):
        assert abs(value - their_value) < LIMIT, pair
        assert is_greedy == their_greedy, pair
    assert ours.truncated == 1


def test_greedy_continuations_are_seen(ours: HarnessModel, theirs: Any) -> None:
    (answer,) = ask(theirs, "generate_until", ("import os", {"until": [], "max_gen_toks": 3}))
    pair = ("import os", answer)
    assert ours._encode_pair(*pair)[1], "the answer must have tokens of its own"
    found, wanted = (ask(model, "loglikelihood", pair)[0][1] for model in (ours, theirs))
    assert found == wanted


@pytest.mark.parametrize("times", [0, 1, 3, 9])
def test_rolling_windows_are_the_harness_own(times: int, ours: HarnessModel, theirs: Any) -> None:
    """Shorter than the context, and of several windows."""
    texts = [(TEXT * times,), ("x" + TEXT * times,)]
    found, wanted = (ask(model, "loglikelihood_rolling", *texts) for model in (ours, theirs))
    np.testing.assert_allclose(found, wanted, atol=LIMIT, rtol=1e-6)


def test_answers_are_the_harness_own(ours: HarnessModel, theirs: Any) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [
        ("import os", {"until": ["\n"], "max_gen_toks": 12}),
        ("import os", {"until": "\n", "max_gen_toks": 12, "do_sample": False}),
        ("import os", {"until": [], "max_gen_toks": 5, "temperature": 0.0}),
        ("def wrap(", {"max_gen_toks": 12}),
        ("import os", {"until": ["e", "o", "t"], "max_gen_toks": 12, "temperature": 0}),
        (TEXT * 4, {"until": [" "], "max_gen_toks": 30}),  # its beginning is left out
        ("<|begin_of_text|>import", {"until": ["\n"], "max_new_tokens": 7}),
    ]
    found, wanted = (ask(model, "generate_until", *asked) for model in (ours, theirs))
    assert found == wanted
    assert len(set(found)) > 3
    assert ours.truncated == 1


def test_sampled_answers_of_a_repeated_prompt_differ(ours: HarnessModel) -> None:
    asked = ("import os", {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0})
    found = ask(ours, "generate_until", asked, asked, asked)
    assert len(set(found)) > 1
    assert ask(ours, "generate_until", asked, asked, asked) == found


def test_whole_tasks_have_the_harness_own_results(
    ours: HarnessModel,
    theirs: Any,
    tmp_path: Path,
    datasets_cache: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = write_tasks(tmp_path / "tasks", 8)
    monkeypatch.chdir(tasks)  # where the tasks look for their files

    def results(model: Any) -> tuple[dict[str, Any], list[Any]]:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[GROUP],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            num_fewshot=2,
            bootstrap_iters=0,
        )
        return found["results"], found["samples"]

    (mine, my_samples), (other, other_samples) = results(ours), results(theirs)
    assert mine.keys() == other.keys()
    for task, metrics in mine.items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert value == pytest.approx(other[task][name], rel=1e-4), (task, name)
    for task, samples in my_samples.items():
        for one, same in zip(samples, other_samples[task], strict=True):
            for answer, their_answer in zip(one["resps"], same["resps"], strict=True):
                check_same(answer[0], their_answer[0])


def check_same(answer: Any, other: Any) -> None:
    if isinstance(answer, str):
        assert answer == other
    else:
        assert abs(answer[0] - other[0]) < LIMIT and answer[1] == other[1]


def test_a_chat_is_written_by_the_template(ours: HarnessModel) -> None:
    history = [
        {"role": "user", "content": "import os"},
        {"role": "assistant", "content": "def"},
        {"role": "user", "content": "text"},
    ]
    text = ours.apply_chat_template(history)
    tokens = ours.tokenizer.apply_chat_template(history, add_generation_prompt=True)
    assert ours.tok_encode(text) == tokens  # one token that begins the text
    open_end = ours.apply_chat_template(history[:2], add_generation_prompt=False)
    assert open_end.endswith("def")


def test_equal_requests_count_once_and_the_log_answers(folder: Path, tmp_path: Path) -> None:
    scorer = open_scorer(folder, "mlx")
    scorer.batch_tokens = 16
    seen: list[Progress] = []

    def run() -> tuple[list[Any], list[Any]]:
        seen.clear()
        with AnswerLog(tmp_path / "answers.jsonl", "identity") as log:
            model = HarnessModel(scorer, log, seen.append)
            asked = ("import os", {"until": ["\n"], "max_gen_toks": 4})
            return ask(model, "loglikelihood", *PAIRS), ask(model, "generate_until", asked)

    first = run()
    (last,) = [each for each in seen if each.kind == "log-likelihoods"][-1:]
    assert last.requests == last.of_requests == len(set(PAIRS)) - 1  # two moved spaces are one
    assert (last.tokens, last.from_log) == (last.of_tokens, 0)
    assert run() == first
    assert all(each.from_log == each.requests for each in seen)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("loglikelihood", ("x", ""), "request 1: its continuation '' has no tokens"),
        ("loglikelihood", ("", ""), "request 1: its continuation '' has no tokens"),
        ("loglikelihood", ("", "<|begin_of_text|>"), "has no tokens"),
        ("loglikelihood", ("x", 5), "its continuation is 5, which is no text"),
        ("loglikelihood", (["x"], "y"), r"its context is \['x'\], which is no text"),
        ("loglikelihood_rolling", (5,), "request 1: 5 is no text"),
        ("loglikelihood", ("x", "word " * 300), r"has \d+ tokens, and the model takes 96"),
        ("generate_until", ("x", {"max_gen_toks": 96}), "wants answers of 96 tokens"),
        ("generate_until", ("x", {"num_beams": 2}), "wants to generate with 'num_beams'"),
        ("generate_until", ("x", {"top_kk": 2}), r"'top_kk' \(did you mean 'top_k'\?\)"),
    ],
)
def test_what_a_task_cannot_ask(
    kind: str, arguments: tuple[Any, ...], message: str, ours: HarnessModel
) -> None:
    with pytest.raises(UserError, match=message):
        ask(ours, kind, arguments)
