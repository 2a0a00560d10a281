"""`mobilemoe eval` as it is typed: every kind of model, broken off, resumed, and what is wrong."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map
from small_tasks import ANSWERS, CHOICES, GROUP, LIKELIHOOD, choices, likelihoods, write_tasks

import mobilemoe_mlx
from mobilemoe_mlx.adapters.adapter_file import save_adapter
from mobilemoe_mlx.adapters.attach import attach
from mobilemoe_mlx.adapters.base_digest import base_digest
from mobilemoe_mlx.adapters.config import AdapterConfig
from mobilemoe_mlx.adapters.load import load_adapted
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.checkpoint.rewrite import convert
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.evaluation.answer_log import AnswerLog
from mobilemoe_mlx.evaluation.results import read_results
from mobilemoe_mlx.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("datasets_cache")
pytest.importorskip("lm_eval")

QUESTIONS = 12


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), QUESTIONS)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, bf16_folder: Path) -> Path:
    model = load_model(bf16_folder)
    config = AdapterConfig()
    attach(model, config)
    mx.random.seed(0)
    parameters = tree_map(
        lambda p: p + 0.2 * mx.random.normal(p.shape), model.trainable_parameters()
    )
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    base = base_digest(bf16_folder)
    save_adapter(folder, parameters, config, base, num_layers=len(model.layers))
    return folder


@pytest.fixture(scope="module")
def evaluated(
    tasks: Path, bf16_folder: Path, tmp_path_factory: pytest.TempPathFactory, datasets_cache: None
) -> Path:
    """The folder of an evaluation that nothing broke off."""
    out = tmp_path_factory.mktemp("out") / "whole"
    assert main([str(word) for word in command(bf16_folder, tasks, out)]) == 0
    return out


def command(model: Path, tasks: Path, out: Path, *more: str | Path) -> list[str]:
    words = ["eval", model, "--include", tasks, "--out", out, *more]
    for option, value in (("--tasks", GROUP), ("--engine", "mlx")):
        if option not in more:
            words += [option, value]
    return [str(word) for word in words]


def direct_choices(model: Any, folder: Path) -> dict[str, list[int]]:
    """acc and acc_norm of each question, from the model's logits alone."""
    tokenizer = load_tokenizer(folder)
    found: dict[str, list[int]] = {"acc": [], "acc_norm": []}
    for each in choices(QUESTIONS):
        context = tokenizer.encode(f"Question: {each['question']}\nAnswer:")
        values = []
        for choice in each["choices"]:
            text = tokenizer.encode(f"Question: {each['question']}\nAnswer: {choice}")
            logits = model(mx.array([text[:-1]])).astype(mx.float32)
            chosen = nn.log_softmax(logits, axis=-1)[0]
            values.append(
                sum(chosen[i - 1, text[i]].item() for i in range(len(context), len(text)))
            )
        lengths = [len(choice) for choice in each["choices"]]
        found["acc"].append(int(np.argmax(values) == each["answer"]))
        found["acc_norm"].append(int(np.argmax(np.divide(values, lengths)) == each["answer"]))
    return found


@pytest.mark.usefixtures("kernel_is_built")
@pytest.mark.parametrize(
    "kind", ["bf16", "adapter", "int4 on mlx", "int4 on cpu", "converted", "onnx"]
)
def test_every_kind_of_model(
    kind: str,
    tasks: Path,
    bf16_folder: Path,
    int4_folder: Path,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = bf16_folder if kind in ("bf16", "adapter") else int4_folder
    more: list[str] = []
    if kind == "adapter":
        more = ["--adapter", f"{adapter}:0.5"]
    elif kind == "int4 on cpu":
        more = ["--engine", "cpu", "--precision", "exact", "--threads", "1"]
    elif kind == "converted":
        convert(int4_folder, tmp_path / "model", to="mlx")
    elif kind == "onnx":
        pytest.importorskip("onnxruntime")
        from mobilemoe_mlx.export.onnx.folder import export_onnx
        from mobilemoe_mlx.export.onnx.options import ExportOptions

        export_onnx(int4_folder, tmp_path / "model", ExportOptions(context=128))
        more = ["--engine", "onnx"]
    given = tmp_path / "model" if kind in ("converted", "onnx") else folder
    out = tmp_path / "out"
    assert main(command(given, tasks, out, *more)) == 0, capsys.readouterr()
    results = read_results(out)
    assert results.finished
    direct = load_adapted(folder, [(adapter, 0.5)]) if kind == "adapter" else load_model(folder)
    expected = direct_choices(direct, folder)
    documents = results.documents[CHOICES]
    assert {name: [*values] for name, values in documents.values.items()} == {
        f"{metric},none": values for metric, values in expected.items()
    }
    for metric, values in expected.items():
        assert results.tasks[CHOICES].metrics[f"{metric},none"] == np.mean(values)
        error = np.std(values, ddof=1) / np.sqrt(QUESTIONS)
        assert results.tasks[CHOICES].stderr[f"{metric},none"] == pytest.approx(error)
    printed = capsys.readouterr().out
    assert f"{3 * QUESTIONS} questions of 3 tasks" in printed and f"Results are in {out}" in printed


def test_what_is_written(evaluated: Path, bf16_folder: Path) -> None:
    results = read_results(evaluated)
    assert results.settings.model == str(bf16_folder)
    assert [*results.tasks] == [CHOICES, LIKELIHOOD, ANSWERS]
    choice, likelihood = results.tasks[CHOICES], results.tasks[LIKELIHOOD]
    assert (choice.questions, choice.of_questions, choice.shots) == (QUESTIONS, QUESTIONS, 0)
    assert choice.version == "1.0" and choice.seconds > 0
    assert likelihood.higher_is_better == {"perplexity": False, "acc": True}
    # The group's acc: the mean of all questions that have one.
    group = results.groups[GROUP]
    both = [results.documents[name].values["acc,none"] for name in (CHOICES, LIKELIHOOD)]
    assert group.metrics["acc,none"] == pytest.approx(np.mean(np.concatenate(both)))
    assert group.members == (CHOICES, LIKELIHOOD, ANSWERS) and group.questions == 3 * QUESTIONS
    for name in results.tasks:
        assert len(set(results.documents[name].hashes)) == QUESTIONS
    values = [*results.documents[LIKELIHOOD].values["perplexity,none"]]
    assert likelihood.metrics["perplexity,none"] == pytest.approx(np.exp(-np.mean(values)))


def test_samples_shots_limit_and_json(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    more = ["--log-samples", "--shots", "2", "--limit", "3", "--json"]
    assert main(command(bf16_folder, tasks, out, *more)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "results.json").read_text())
    assert told["tasks"][CHOICES]["shots"] == 2 and told["tasks"][CHOICES]["questions"] == 3
    assert told["tasks"][CHOICES]["of_questions"] == QUESTIONS
    lines = (out / "samples" / f"{CHOICES}.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert len(lines) == 3 and first["doc"] == choices(QUESTIONS)[0]
    prompt = first["arguments"][0][0]
    assert prompt.count("Question:") == 3 and prompt.endswith("Answer:")
    sample = json.loads((out / "samples" / f"{ANSWERS}.jsonl").read_text().splitlines()[1])
    assert sample["arguments"][0][0].endswith(likelihoods(2)[1]["context"])


def same_but_for_seconds(one: Path, other: Path) -> None:
    """Of two evaluations, whatever was found is the same, bit for bit."""
    contents = []
    for folder in (one, other):
        results = json.loads((folder / "results.json").read_text())
        for each in (*results["tasks"].values(), *results["groups"].values()):
            del each["seconds"]
        contents.append((results, (folder / "per_document.json").read_bytes()))
    assert contents[0] == contents[1]


KILLED = """
import os, signal, sys
from mobilemoe_mlx.evaluation.answer_log import AnswerLog
from mobilemoe_mlx.evaluation.scorer import Scorer
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError

Scorer.batch_tokens = 64
put, left = AnswerLog.put, [int(sys.argv[1])]

def put_and_die(self, key, answers):
    if left[0] == 0:
        self._file.write(b'{"key": "torn')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    put(self, key, answers)

AnswerLog.put = put_and_die
sys.exit(main(sys.argv[2:]))
"""


def test_kill_9_and_resume_find_the_same_bit_for_bit(
    tasks: Path,
    bf16_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mobilemoe_mlx.evaluation.scorer.Scorer.batch_tokens", 64)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    words = command(bf16_folder, tasks, killed)
    environment = {**os.environ, "PYTHONPATH": str(Path(mobilemoe_mlx.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "11", *words], env=environment, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = (killed / "answers.jsonl").read_bytes().splitlines()
    assert len(kept) == 12 and kept[-1] == b'{"key": "torn'
    before = read_results(killed)
    assert not before.finished
    assert main([*words, "--resume"]) == 0, capsys.readouterr()
    lines = (killed / "answers.jsonl").read_bytes().splitlines()
    assert lines[:11] == kept[:11] and len(lines) > 12
    assert main(command(bf16_folder, tasks, whole)) == 0
    assert len((whole / "answers.jsonl").read_bytes().splitlines()) == len(lines)
    same_but_for_seconds(killed, whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_names_the_command_that_goes_on(
    number: signal.Signals,
    status: int,
    tasks: Path,
    bf16_folder: Path,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put = AnswerLog.put
    left = 1

    def put_and_signal(self: AnswerLog, key: str, answers: list[Any]) -> None:
        nonlocal left
        put(self, key, answers)
        if left == 0:
            os.kill(os.getpid(), number)
        left -= 1

    with monkeypatch.context() as patch:
        patch.setattr(AnswerLog, "put", put_and_signal)
        assert main(command(bf16_folder, tasks, tmp_path / "out")) == status
    error = capsys.readouterr().err
    assert "what was answered is kept. Go on with:" in error and "Traceback" not in error
    # What was finished is there: one task, and not the group.
    results = read_results(tmp_path / "out")
    assert [*results.tasks] == [CHOICES] and not results.groups and not results.finished
    program, *again = shlex.split(error.strip().splitlines()[-1])
    assert program == "mobilemoe" and main(again) == 0
    same_but_for_seconds(tmp_path / "out", evaluated)


def test_resuming_asks_nothing_again(
    tasks: Path, bf16_folder: Path, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a batch was computed again")

    before = (evaluated / "answers.jsonl").read_bytes()
    monkeypatch.setattr(AnswerLog, "put", never)
    assert main([*command(bf16_folder, tasks, evaluated), "--resume"]) == 0
    assert (evaluated / "answers.jsonl").read_bytes() == before


def test_resuming_keeps_what_was_found_until_it_is_found_again(
    tasks: Path,
    bf16_folder: Path,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shutil.copytree(evaluated, tmp_path / "out")
    before = (out / "results.json").read_bytes()
    words = [*command(bf16_folder, tasks, out), "--resume"]

    def broken(*_: Any) -> None:
        raise UserError("broken on purpose")

    with monkeypatch.context() as patch:
        patch.setattr("mobilemoe_mlx.evaluation.harness_model.HarnessModel._score", broken)
        assert main(words) == 2
    assert "broken on purpose" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("mobilemoe_mlx.evaluation.harness_model.HarnessModel._generate", broken)
        assert main(words) == 2
    results = read_results(out)
    assert [*results.tasks] == [CHOICES, LIKELIHOOD, ANSWERS] and [*results.groups] == [GROUP]
    assert not results.finished and len(results.documents[ANSWERS].hashes) == QUESTIONS
    # What is found again takes the place of the old, the group's score too.
    content = json.loads((out / "results.json").read_text())
    content["groups"][GROUP]["metrics"]["acc,none"] = 7.0
    (out / "results.json").write_text(json.dumps(content))
    assert main(words) == 0
    same_but_for_seconds(out, evaluated)


def test_what_was_killed_before_it_had_begun_is_no_hindrance(
    tasks: Path, bf16_folder: Path, tmp_path: Path
) -> None:
    for name in ("answers.jsonl", "results.json.tmp"):
        (tmp_path / name).write_text('{"torn')
    assert main(command(bf16_folder, tasks, tmp_path, "--limit", "1")) == 0
    assert read_results(tmp_path).finished


def test_another_model_is_not_the_one_in_the_folder(
    tasks: Path, int4_folder: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(int4_folder, tasks, evaluated), "--resume"]) == 2
    assert "other settings (model_sha256)" in capsys.readouterr().err
    assert main([*command(int4_folder, tasks, evaluated, "--limit", "2"), "--resume"]) == 2
    assert "(model_sha256, tasks)" in capsys.readouterr().err


Words = Callable[[Path, Path, Path], Sequence[str | Path]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (lambda model, tasks, out: ["eval", model], "Which tasks? Give --tasks"),
        (lambda model, tasks, out: ["eval", model, "--suite", "paper4"], "did you mean 'paper14'"),
        (lambda model, tasks, out: ["eval", model, "--tasks", "quick"], "give it with --suite"),
        (lambda model, tasks, out: command(model, tasks, out, "--limit", "0"), "--limit is 0"),
        (lambda model, tasks, out: command(model, tasks, out, "--shots", "-1"), "--shots is -1"),
        (lambda model, tasks, out: command(model, tasks / "no", out), "there is no such folder"),
        (
            lambda model, tasks, out: command(model, tasks / f"{CHOICES}.yaml", out),
            f"{CHOICES}.yaml is a file: give the folder that it is in, --include ",
        ),
        (lambda model, tasks, out: command(model, tasks, out, "--data-dir", "no"), "--data-dir no"),
        (
            lambda model, tasks, out: command(
                model, tasks, out, "--data-dir", tasks / "shots.jsonl"
            ),
            "shots.jsonl is a file: give the folder that it is in, --data-dir ",
        ),
        (lambda model, tasks, out: command(model, tasks, tasks), "exists and is no evaluation"),
        (lambda model, tasks, out: command(model, tasks, out, "--resume"), "no evaluation to go"),
        (lambda model, tasks, out: command(model, tasks, out, "--engine", "cpy"), "mean 'cpu'"),
        (lambda model, tasks, out: command(model / "no", tasks, out), "There is no folder"),
        (
            lambda model, tasks, out: command(model, tasks, out, "--tasks", f"{GROUP},{CHOICES}"),
            f"{CHOICES} is asked for more than once (by {GROUP}, {CHOICES})",
        ),
        (
            lambda model, tasks, out: command(model, tasks, out, "--shots", "9"),
            f"The task {CHOICES} has 4 examples to show, and 9 were asked for",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: Words,
    message: str,
    tasks: Path,
    bf16_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    before = sorted(tasks.iterdir())
    assert main([str(word) for word in words(bf16_folder, tasks, out)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert sorted(tasks.iterdir()) == before
    assert not out.exists()


def test_right_answers_that_are_no_choice_are_told(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    data = folder / f"{CHOICES}.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[1]["answer"] = len(rows[1]["choices"])
    rows[2]["answer"] = -1
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # More than the harness counts to is all there are.
    more = ("--tasks", CHOICES, "--limit", str(10**30))
    assert main(command(bf16_folder, folder, tmp_path / "out", *more)) == 0
    assert f"{CHOICES}: the right answer (doc_to_target) of 2 questions" in capsys.readouterr().out


def test_a_choice_that_the_model_cannot_take_names_its_task(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    data = folder / f"{CHOICES}.jsonl"
    row = json.loads(data.read_text().splitlines()[0])
    row["choices"][0] = "a b " * 5000
    data.write_text(json.dumps(row) + "\n")
    assert main(command(bf16_folder, folder, tmp_path / "out", "--tasks", CHOICES)) == 2
    error = capsys.readouterr().err
    assert (
        f"The task {CHOICES} failed: question 1, choice 1: its continuation has" in error
        and "--resume" in error
    )


def test_a_task_that_fails_keeps_what_was_found_before(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    (folder / "own.py").write_text("def score(doc, results):\n    return {'acc': 1 / 0}\n")
    yaml = (folder / f"{LIKELIHOOD}.yaml").read_text()
    (folder / "bad.yaml").write_text(
        yaml.replace(f"task: {LIKELIHOOD}", "task: bad\nprocess_results: !function own.score")
    )
    out = tmp_path / "out"
    words = command(bf16_folder, folder, out, "--tasks", f"{CHOICES},bad,{ANSWERS}")
    assert main(words) == 2
    error = capsys.readouterr().err
    where = f"score ({folder / 'own.py'}, line 2)"
    assert (
        f"The task bad failed: question 1: {where}: ZeroDivisionError" in error
        and "Traceback" not in error
    )
    assert [*read_results(out).tasks] == [CHOICES]
    (folder / "own.py").write_text("def score(doc, results):\n    return {'acc': 1}\n")
    assert main([*words, "--resume"]) == 0
    results = read_results(out)
    assert [*results.tasks] == [CHOICES, "bad", ANSWERS]
    assert results.tasks["bad"].metrics["acc,none"] == 1


def with_row(folder: Path, name: str, index: int, **values: Any) -> None:
    """Change values of one question."""
    path = folder / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[index].update(values)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("key", "function", "message"),
    [
        ("process_results", "sys.exit()", "question 1: own ({file}, line 3): it ends the program"),
        ("process_results", "exit(0)", "question 1: own ({file}, line 3): it ends the program"),
        ("process_results", "raise KeyboardInterrupt", "own ({file}, line 3): KeyboardInterrupt"),
        ("process_results", "raise BaseException('x')", "own ({file}, line 3): BaseException: x"),
        ("process_results", "open('/no/file')", "own ({file}, line 3): FileNotFoundError"),
        ("process_results", "return None", "question 1: process_results gives None"),
        ("doc_to_text", "own.n = vars(own).get('n', 0) + 1\n    return 'x' if own.n < 3 else "
         "sys.exit(0)", "own ({file}, line 4): it ends the program (SystemExit: 0)"),
        ("doc_to_text", "own.n = vars(own).get('n', 0) + 1\n    return 'x' if own.n < 5 else 5",
         "doc_to_text gives 5, which is no text"),
    ],
)  # fmt: skip
def test_what_a_function_ends_is_the_tasks_failure(
    key: str,
    function: str,
    message: str,
    bf16_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a status that says so, and what was found before is kept."""
    folder = write_tasks(tmp_path / "tasks", 3)
    (folder / "own.py").write_text(f"import sys\ndef own(*given):\n    {function}\n")
    yaml = (folder / f"{ANSWERS}.yaml").read_text().replace(ANSWERS, "bad")
    (folder / "bad.yaml").write_text(f"{yaml}{key}: !function own.own\n")
    out = tmp_path / "out"
    assert main(command(bf16_folder, folder, out, "--tasks", f"{CHOICES},bad")) == 2
    error = capsys.readouterr().err
    assert "The task bad failed: question " in error and "--resume" in error
    assert message.replace("{file}", str(folder / "own.py")) in error
    assert [*read_results(out).tasks] == [CHOICES]
    assert read_results(out).documents[CHOICES].hashes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choices": ["a", "", "b"]}, "question 2, choice 2: its continuation '' has no tokens"),
        ({"choices": []}, "question 2: it has no choices"),
        ({"choices": ["a", None, "b"]}, "question 2: its choice 2 is None, which is no text"),
        ({"question": None}, "question 2: doc_to_text gives None, which is no text"),
        ({"answer": None}, "question 2: doc_to_target gives None, which names none of its choices"),
        ({"choices": ["a"], "answer": 0}, None),
        ({"question": ""}, None),
        ({"question": "  "}, None),
        ({"question": "the words " * 3000}, None),
    ],
)
def test_questions_that_the_harness_takes_and_does_not(
    values: dict[str, Any],
    message: str | None,
    bf16_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_tasks(tmp_path / "tasks", 3)
    path = folder / f"{CHOICES}.yaml"
    yaml = path.read_text().replace('"Question: {{question}}\\nAnswer:"', "question")
    path.write_text(f"{yaml}target_delimiter: ''\n")
    with_row(folder, CHOICES, 1, **values)
    words = command(bf16_folder, folder, tmp_path / "out", "--tasks", CHOICES)
    assert main(words) == (0 if message is None else 2)
    said = capsys.readouterr()
    if message is not None:
        assert f"The task {CHOICES} failed: {message}" in said.err
    elif len(values.get("question", "")) > 1000:
        assert "lost their beginning, being longer than the model takes: 3 of" in said.out


def test_an_empty_choice_after_a_space_is_the_space(
    bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tasks(tmp_path / "tasks", 3)
    with_row(folder, CHOICES, 1, choices=["a", "", "b"])
    more = ("--tasks", CHOICES, "--log-samples")
    assert main(command(bf16_folder, folder, tmp_path / "out", *more)) == 0
    lines = (tmp_path / "out" / "samples" / f"{CHOICES}.jsonl").read_text().splitlines()
    assert [each[1] for each in json.loads(lines[1])["arguments"]] == [" a", " ", " b"]


def test_a_metric_of_another_type_of_task_is_told(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    path = folder / f"{CHOICES}.yaml"
    path.write_text(path.read_text().replace("metric: acc_norm", "metric: perplexity"))
    assert main(command(bf16_folder, folder, tmp_path / "out", "--tasks", CHOICES)) == 0
    said = f"{CHOICES}: the harness computes no 'perplexity' for tasks of the type multiple_choice"
    assert said in capsys.readouterr().out


def test_examples_that_are_the_questions_are_told(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(bf16_folder, tasks, tmp_path / "out", "--shots", "2", "--limit", "2")
    assert main(words) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "drawn from the" in line]
    assert [line.partition(":")[0] for line in told] == [LIKELIHOOD, ANSWERS]  # without a split
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    for name in (LIKELIHOOD, ANSWERS):  # here the harness takes the question out
        path = folder / f"{name}.yaml"
        path.write_text(path.read_text() + "fewshot_split: test\n")
    words = command(bf16_folder, folder, tmp_path / "other", "--shots", "2", "--limit", "2")
    assert main(words) == 0
    assert "drawn from the" not in capsys.readouterr().out


def test_a_full_disk_says_how_to_go_on(
    tasks: Path,
    bf16_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(AnswerLog, "put", full)
        assert main(command(bf16_folder, tasks, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'out'}: No space left on device. What was answered before is" in error
    assert main([*command(bf16_folder, tasks, tmp_path / "out"), "--resume"]) == 0


def test_a_tag_is_its_tasks(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(bf16_folder, tasks, tmp_path / "out", "--tasks", "small_tag", "--limit", "2")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("small_")] == [ANSWERS, LIKELIHOOD]


def test_texts_scored_as_a_whole(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rolling log-likelihoods: a metric that is no mean, and texts longer than the context."""
    folder = shutil.copytree(tasks, tmp_path / "tasks")
    records = likelihoods(3)
    records[1]["context"] = " ".join(["whitespace"] * 400)
    (folder / "texts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (folder / "texts.yaml").write_text(
        "task: texts\ndataset_path: json\ndataset_kwargs: {data_files: {test: texts.jsonl}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{context}}'\nmetric_list:\n  - metric: byte_perplexity\n"
    )
    out = tmp_path / "out"
    assert main(command(bf16_folder, folder, out, "--tasks", "texts")) == 0, capsys.readouterr()
    results = read_results(out)
    values = np.array(results.documents["texts"].values["byte_perplexity,none"])
    assert values[:, 1].tolist() == [len(each["context"]) for each in records]
    expected = np.exp(-values[:, 0].sum() / values[:, 1].sum())
    assert results.tasks["texts"].metrics["byte_perplexity,none"] == pytest.approx(expected)


def test_chats(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--chat", "--shots", "1", "--limit", "2", "--log-samples"]
    assert main(command(bf16_folder, tasks, tmp_path / "out", *more)) == 0
    lines = (tmp_path / "out" / "samples" / f"{CHOICES}.jsonl").read_text().splitlines()
    prompt = json.loads(lines[0])["arguments"][0][0]
    # The example and its answer are turns of their own.
    assert prompt.count("user") == 2 and prompt.count("assistant") == 2
    bare = tmp_path / "bare"
    shutil.copytree(bf16_folder, bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    assert main(command(bare, tasks, tmp_path / "none", "--chat")) == 2
    assert "has no chat template" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_without_the_harness_it_says_what_to_install(
    tasks: Path,
    bf16_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(command(bf16_folder, tasks, tmp_path / "out")) == 2
    assert "pip install --editable '.[eval]'" in capsys.readouterr().err


def test_a_damaged_folder_is_one_sentence(
    tasks: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for content in ("", "[]", '{"version": 0}', '{"version": 1, "settings": 3}'):
        (out / "results.json").write_text(content)
        assert main([*command(bf16_folder, tasks, out), "--resume"]) == 2
        error = capsys.readouterr().err
        assert str(out / "results.json") in error and "Traceback" not in error


def test_the_folder_has_a_name_where_none_is_given(
    tasks: Path, bf16_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["eval", str(bf16_folder), "--include", str(tasks), "--tasks", CHOICES, "--limit", "1"]
    assert main(words) == 0
    (found,) = (tmp_path / "runs" / "eval").iterdir()
    assert found.name.endswith(f"bf16-{CHOICES}") and read_results(found).finished


def test_other_words_are_another_question(
    evaluated: Path, bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = write_tasks(tmp_path / "tasks", QUESTIONS)
    yaml = tasks / f"{CHOICES}.yaml"
    yaml.write_text(yaml.read_text().replace("Question: ", "Riddle: "))
    assert main(command(bf16_folder, tasks, tmp_path / "out")) == 0
    assert main(["eval", "--compare", str(evaluated), str(tmp_path / "out")]) == 2
    assert f"same questions of {CHOICES} in the same words" in capsys.readouterr().err


def test_answers_as_long_as_the_context(
    bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that does not say how long its answers are wants 256 tokens."""
    tasks = write_tasks(tmp_path / "tasks", QUESTIONS)
    yaml = tasks / f"{ANSWERS}.yaml"
    yaml.write_text(yaml.read_text().replace("  max_gen_toks: 8\n", ""))
    assert main(command(bf16_folder, tasks, tmp_path / "out")) == 2
    said = f"The task {ANSWERS} wants answers of 256 tokens, and this model takes "
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
