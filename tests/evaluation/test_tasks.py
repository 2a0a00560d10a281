"""The harness's tasks before a model is loaded: names, local data, code, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_tasks import CHOICES, GROUP, YAML, write_tasks

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.evaluation import code_gate
from mobilemoe_mlx.evaluation.suites import WantedTask, read_suite, suite_names, wanted_tasks
from mobilemoe_mlx.evaluation.task_index import all_names, task_configs, task_manager
from mobilemoe_mlx.evaluation.tasks import LoadedTasks, load_tasks

lm_eval_tasks = pytest.importorskip("lm_eval.tasks")
pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def harness() -> Any:
    """The harness's own index of all its tasks: ten seconds."""
    return lm_eval_tasks.TaskManager()


@pytest.fixture
def indexed_once(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the index above where a name is unknown."""
    build, every = lm_eval_tasks.TaskManager, lm_eval_tasks.manager.TaskIndex._iter_yaml_files

    def manager(**options: Any) -> Any:
        is_whole = (
            options.get("include_defaults", True)
            and lm_eval_tasks.manager.TaskIndex._iter_yaml_files is every
        )
        return harness if is_whole else build(**options)

    monkeypatch.setattr(lm_eval_tasks, "TaskManager", manager)


def load(*names: str, **options: Any) -> LoadedTasks:
    return load_tasks([WantedTask(name) for name in names], **options)


# Suites.


@pytest.mark.parametrize("suite", suite_names())
def test_the_harness_has_the_tasks_of_a_suite(suite: str, harness: Any) -> None:
    """And each of its metrics, among those that the tasks' YAML declares."""
    for each in read_suite(suite).tasks:
        metric, _, filter_name = each.metric.partition(",")
        configs = [*task_configs(harness.task_index, each.task)]
        leaves = [config for config in configs if isinstance(config.get("task"), str)]
        assert leaves, each.task
        for config in leaves:
            metrics = {str(m["metric"]).rpartition(".")[2] for m in config["metric_list"]}
            assert {metric, "pass_at_k" if metric == "pass@1" else metric} & metrics, each.task
            filters = [f["name"] for f in config.get("filter_list", [{"name": "none"}])]
            assert filter_name in filters, each.task
            fixed = config.get("num_fewshot")
            assert fixed != 0 or each.shots == 0, each.task


def test_the_papers_suites() -> None:
    paper = read_suite("paper14")
    assert len(paper.tasks) == 14
    # Of half of them the paper's number of shots is known: none.
    known = [each.benchmark for each in paper.tasks if not each.why]
    assert known == ["HellaSwag", "PIQA", "SIQA", "WinoGrande", "ARC-easy", "OpenBookQA", "BoolQ"]
    assert all(each.shots == 0 for each in paper.tasks if not each.why)
    sft = read_suite("sft")
    assert len(sft.tasks) + len(sft.missing) == 7 and sft.chat


def test_quick_has_a_few_hundred_questions(harness: Any) -> None:
    count = 0
    for each in read_suite("quick").tasks:
        configs = task_configs(harness.task_index, each.task)
        assert each.limit is not None
        count += each.limit * sum(isinstance(config.get("task"), str) for config in configs)
    assert count == 457  # as quick.toml says


def test_shots_and_limit_go_before_a_suites_own() -> None:
    changed = wanted_tasks("quick", ["gsm8k"], shots=2, limit=3)
    assert {(each.shots, each.limit) for each in changed.tasks} == {(2, 3)}
    assert [each.task for each in changed.tasks][-1] == "gsm8k"


# Names and data.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks", questions=3)


def test_tasks_of_a_folder_need_no_index_of_the_harness(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = lm_eval_tasks.TaskManager

    def manager(**options: Any) -> Any:
        assert options.get("include_defaults") is False
        return build(**options)

    monkeypatch.setattr(lm_eval_tasks, "TaskManager", manager)
    loaded = load(GROUP, include=[folder])
    assert loaded.tasks[0].name == CHOICES and loaded.questions == 9


@pytest.mark.parametrize("suite", suite_names())
def test_the_part_of_the_harness_that_a_suite_needs(suite: str, harness: Any) -> None:
    """Is as good as all of it, and far smaller."""
    wanted = read_suite(suite).tasks
    some = task_manager(wanted, []).task_index
    assert len(some) < len(harness.task_index) / 4
    names = [each.task for each in wanted]
    needed = [*all_names(harness.task_index, names)]
    assert [*all_names(some, names)] == needed
    for name in needed:
        assert some[name] == harness.task_index[name]


@pytest.mark.parametrize(
    "name",
    [
        "mgsm_direct",  # a tag, which one task has from a file of another folder
        "chain_of_thought",
        "arc_challenge_mt_da",
        "leaderboard",
        "truthfulqa_gen",
    ],
)
def test_names_of_every_kind_are_found_without_the_whole_index(name: str, harness: Any) -> None:
    some = task_manager([WantedTask(name)], []).task_index
    assert some[name] == harness.task_index[name]
    assert [*all_names(some, [name])] == [*all_names(harness.task_index, [name])]


@pytest.mark.usefixtures("indexed_once")
def test_a_file_with_another_ending_is_told(folder: Path) -> None:
    (folder / f"{CHOICES}.yaml").rename(folder / f"{CHOICES}.yml")
    with pytest.raises(UserError, match=rf"no task '{CHOICES}'(.|\n)*end with \.yaml"):
        load(CHOICES, include=[folder])


@pytest.mark.usefixtures("indexed_once")
def test_unknown_names_tell_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no task 'helaswag' \(did you mean 'hellaswag'\?\)"):
        load("helaswag")
    with pytest.raises(UserError, match=r"no task 'papr14' \(did you mean 'paper14'\?\)"):
        load("papr14")


@pytest.mark.usefixtures("indexed_once")
def test_a_file_that_the_harness_passes_over_is_told(folder: Path) -> None:
    (folder / f"{CHOICES}.yaml").write_text("task: [small\n")
    with pytest.raises(
        UserError, match=rf"no task '{CHOICES}'(.|\n)*{CHOICES}.yaml cannot be read"
    ):
        load(CHOICES, include=[folder])


def test_a_group_is_no_member_of_itself(folder: Path) -> None:
    (folder / "a.yaml").write_text(f"group: a\ntask: [b, {CHOICES}]\n")
    (folder / "b.yaml").write_text("group: b\ntask: [a]\n")
    with pytest.raises(UserError, match="The group a is a member of itself, by a and b"):
        load("a", include=[folder])


@pytest.mark.usefixtures("indexed_once")
def test_all_missing_data_is_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load("hellaswag", "mmlu", "arc_easy", "arc_challenge")
    message = str(caught.value)
    assert "Rowan/hellaswag (for hellaswag), cais/mmlu (for mmlu), allenai/ai2_arc" in message
    commands = message.splitlines()[1:]
    assert [line.strip() for line in commands] == [
        f"hf download --repo-type dataset {repo}"
        for repo in ("Rowan/hellaswag", "cais/mmlu", "allenai/ai2_arc")
    ]
    assert "hf auth login" in message


HELLASWAG = {
    "ind": 1,
    "activity_label": "Wrapping text",
    "ctx_a": "A line is too long.",
    "ctx_b": "it",
    "ctx": "A line is too long. it",
    "endings": ["is wrapped.", "sings.", "is a fish.", "flies."],
    "label": "0",
    "split": "val",
}


@pytest.mark.usefixtures("indexed_once")
@pytest.mark.parametrize("place", ["Rowan/hellaswag", "hellaswag"])
def test_a_task_of_the_harness_on_data_in_a_folder(place: str, tmp_path: Path) -> None:
    data = tmp_path / "data" / place
    data.mkdir(parents=True)
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text(json.dumps(HELLASWAG) + "\n")
    loaded = load("hellaswag", data_dir=tmp_path / "data")
    (task,) = loaded.tasks
    assert task.questions == 1 and task.shots == 0
    document = task.task.eval_docs[0]
    assert document["query"].startswith("Wrapping text: A line is too long. It")


def test_data_that_hf_download_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hugging Face's cache as it is on disk: refs and snapshots."""
    repo = tmp_path / "hub" / "datasets--someone--small"
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123")
    (snapshot / "test.jsonl").write_text((folder / f"{CHOICES}.jsonl").read_text())
    data = YAML[CHOICES].partition("training_split")[0].partition("dataset_path")[2]
    yaml = YAML[CHOICES].replace(f"dataset_path{data}training_split: train\n", "DATA\n")
    (folder / f"{CHOICES}.yaml").write_text(yaml.replace("DATA", "dataset_path: someone/small"))
    with pytest.raises(UserError, match="someone/small"):
        load(CHOICES, include=[folder])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", repo.parent)
    assert load(CHOICES, include=[folder]).questions == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((f"{CHOICES}.jsonl", "gone.jsonl"), "needs the data file gone.jsonl, which is not in"),
        ((f"{CHOICES}.jsonl", "https://x.org/a"), "nothing is downloaded"),
        (("test_split: test", "test_split: tset"), "cannot be loaded: KeyError: 'tset'"),
        (("{{question}}", "{{question"), "cannot be loaded: question 1: TemplateSyntaxError"),
        (("metric: acc_norm", "metric: acc_nrm"), "'acc_nrm' (did you mean 'acc_norm'?)"),
        (
            ("metric: acc_norm\n    aggregation: mean", "metric: acc_nrm"),
            "'acc_nrm' (did you mean 'acc_norm'?)",
        ),
        (
            ("metadata:", "filter_list: [{name: x, filter: [{function: take_frst}]}]\nmetadata:"),
            "filters answers by 'take_frst' (did you mean 'take_first'?)",
        ),
        (("metadata:", "filter_list: [{name: x}]\nmetadata:"), "has a filter without 'filter'"),
        (("doc_to_choice: choices\n", ""), "question 1: a task of several choices has no doc_to_"),
        (("doc_to_choice: choices", "doc_to_choice: question"), "which is no list"),
        (("output_type: multiple_choice", "output_type: many"), "cannot be loaded"),
        (("metadata:", "doc_to_image: image\nmetadata:"), "pictures"),
        (("aggregation: mean", "aggregation: meen"), "'acc' an aggregation that the harness does"),
    ],
)
def test_a_task_that_cannot_be_loaded(change: tuple[str, str], message: str, folder: Path) -> None:
    path = folder / f"{CHOICES}.yaml"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=f"The task {CHOICES} ") as caught:
        load(CHOICES, include=[folder])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [("", "has no rows"), ('{"question": "torn', "from ArrowInvalid: JSON parse error")],
)
def test_data_that_cannot_be_read(rows: str, message: str, folder: Path) -> None:
    (folder / f"{CHOICES}.jsonl").write_text(rows)
    with pytest.raises(UserError, match=f"The task {CHOICES} cannot be loaded: .*{message}"):
        load(CHOICES, include=[folder])


def test_functions_that_are_no_python(folder: Path) -> None:
    (folder / "torn.py").write_text("\ndef text(doc: return\n")
    path = folder / f"{CHOICES}.yaml"
    path.write_text(path.read_text() + "process_docs: !function torn.text\n")
    with pytest.raises(UserError, match=r"torn\.py, line 2: .* mend it\."):
        load(CHOICES, include=[folder])


@pytest.mark.parametrize(
    ("function", "content", "message"),
    [
        ("onw.score", "", "wants the function score of {folder}/onw.py (did you mean 'own'?), and "
         "there is no such file; nor is a package onw installed"),
        ("sub.own.score", "", "wants the function score of {folder}/sub/own.py, and there is no"),
        ("own.scoer", "def score(): ...", "of {folder}/own.py, which has no such function (did you "
         "mean 'score'?)"),
        ("os.path.scoer", "", "of the package os.path, which has no such function"),
        ("score", "", "Invalid function reference 'score'"),
        ("own.score", "score = 3", "has process_results that are no function"),
        ("own.score", "\n1 / 0", "the import ({folder}/own.py, line 2): ZeroDivisionError"),
        ("own.score", "import os\nos.no", "own.py, line 2): AttributeError: module 'os' has no"),
        ("own.score", "import sys\nsys.exit(0)", "own.py, line 2): it ends the program"),
        ("own.score", "from json import no", "own.py, line 1): ImportError: cannot import name"),
        ("own.score", "import helper", "imports helper. The harness does not look beside the file"),
    ],
)  # fmt: skip
def test_functions_that_are_not_there(
    function: str, content: str, message: str, folder: Path
) -> None:
    (folder / "own.py").write_text(content)
    (folder / "helper.py").write_text("")
    path = folder / f"{CHOICES}.yaml"
    path.write_text(path.read_text() + f"process_results: !function {function}\n")
    with pytest.raises(UserError, match=f"The task {CHOICES} ") as caught:
        load(CHOICES, include=[folder])
    assert message.format(folder=folder) in str(caught.value)
    assert "ackages are missing" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choices": ["", "a", "b"]}, "its choice 1 is empty"),
        ({"choices": []}, "it has no choices"),
        ({"choices": None}, "doc_to_choice gives None, which is no list"),
        ({"answer": 3}, "doc_to_target gives 3, and there are 3 choices, counted from 0"),
        ({"answer": -4}, "doc_to_target gives -4, and there are 3 choices, counted from 0"),
        ({"answer": 0.5}, "doc_to_target gives 0.5, which names none of its choices"),
        ({"answer": None}, "doc_to_target gives None, which names none of its choices"),
    ],
)
def test_a_first_question_that_the_harness_does_not_take(
    values: dict[str, Any], message: str, folder: Path
) -> None:
    path = folder / f"{CHOICES}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0].update(values)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    yaml = folder / f"{CHOICES}.yaml"  # whose examples have other columns then
    yaml.write_text(yaml.read_text().replace("    train: shots.jsonl\ntraining_split: train\n", ""))
    with pytest.raises(UserError, match=f"The task {CHOICES} cannot be loaded: question 1: ") as e:
        load(CHOICES, include=[folder])
    assert message in str(e.value)


@pytest.mark.parametrize("answer", [-1, [0, 7]])
def test_a_right_answer_that_only_counts_as_wrong_is_no_hindrance(
    answer: Any, folder: Path
) -> None:
    path = folder / f"{CHOICES}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"answer": answer}) + "\n" for row in rows))
    yaml = folder / f"{CHOICES}.yaml"
    yaml.write_text(yaml.read_text().replace("    train: shots.jsonl\ntraining_split: train\n", ""))
    assert load(CHOICES, include=[folder]).questions == 3


def test_missing_packages_and_data_are_told_together(folder: Path) -> None:
    path = folder / f"{CHOICES}.yaml"
    yaml = path.read_text()
    (folder / "own.py").write_text("import langdetect_is_absent\n")
    path.write_text(yaml + "process_docs: !function own.process\n")
    other = yaml.replace(CHOICES, "other").replace("dataset_path: json", "dataset_path: some/data")
    (folder / "other.yaml").write_text(other)
    with pytest.raises(UserError) as caught:
        load(CHOICES, "other", include=[folder])
    message = str(caught.value)
    assert f"{CHOICES} (No module named 'langdetect_is_absent')" in message
    assert "pip install 'langdetect_is_absent'" in message
    assert "hf download --repo-type dataset some/data" in message


def test_nothing_stays_patched(folder: Path) -> None:
    import datasets

    before = datasets.load_dataset, datasets.config.HF_HUB_OFFLINE
    load(CHOICES, include=[folder])
    with pytest.raises(UserError):
        (folder / f"{CHOICES}.jsonl").unlink()
        load(CHOICES, include=[folder])
    assert (datasets.load_dataset, datasets.config.HF_HUB_OFFLINE) == before


# Code.


def test_nothing_in_the_harness_runs_text_in_this_process_unseen(harness: Any) -> None:
    """Of all its tasks: these files run text of the model, and each task that reaches one is
    refused; so is each that the harness marks, unless its programs run by code_eval."""
    root = Path(lm_eval_tasks.__file__).parent
    found: dict[str, set[str]] = {}
    for name, entry in harness.task_index.items():
        if entry.cfg is None or not isinstance(entry.cfg.get("task"), str):
            continue
        calls = {
            (file.relative_to(root).as_posix(), function)
            for module in set(code_gate.function_files(entry.cfg))
            for file, function in code_gate.code_calls(module)
        }
        for file, function in calls:
            found.setdefault(file, set()).add(function)
        if entry.cfg.get("unsafe_code"):
            assert calls, name
            with pytest.raises(UserError, match=name):
                code_gate.check_code(name, [entry.cfg], allowed=False)
    assert found == {
        "cruxeval/utils.py": {"exec"},
        "humaneval/utils.py": {"code_eval"},
        "humaneval_infilling/utils.py": {"code_eval"},
        "longproc/metrics.py": {"eval", "Popen", "subprocess.check_output"},
        "mbpp/utils.py": {"code_eval"},
        "score/math/math_grader.py": {"parse_expr"},
    }


@pytest.mark.usefixtures("indexed_once")
@pytest.mark.parametrize("name", ["humaneval", "mbpp_instruct"])
def test_programs_are_refused_until_they_are_allowed(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} runs programs .* --allow-code-execution"):
        load(name)
    with pytest.raises(UserError, match="not on this machine"):
        load(name, allow_code_execution=True)


@pytest.mark.usefixtures("indexed_once")
@pytest.mark.parametrize("name", ["cruxeval_output", "longproc_countdown", "score_robustness_math"])
def test_what_no_limit_holds_is_refused_in_any_case(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} runs text of the model in this process"):
        load(name, allow_code_execution=True)


@pytest.mark.usefixtures("indexed_once")
def test_humaneval_runs_its_programs_here(tmp_path: Path) -> None:
    data = tmp_path / "openai" / "openai_humaneval"
    data.mkdir(parents=True)
    document = {
        "task_id": "0",
        "prompt": "def add(a, b):\n",
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(2, 3) == 5",
        "entry_point": "add",
    }
    (data / "test.jsonl").write_text(json.dumps(document) + "\n")
    (loaded,) = load("humaneval", data_dir=tmp_path, allow_code_execution=True).tasks
    for body, passed in (("    return a + b\n", 1.0), ("    return a * b\n", 0.0)):
        loaded.task.build_all_requests()
        for instance in loaded.task.instances:
            instance.resps = [body]
        loaded.task.apply_filters()
        (instance,) = loaded.task.instances
        answers = [instance.filtered_resps["create_test"]]
        assert loaded.task.process_results(document, answers) == {"pass@1": passed}


@pytest.mark.parametrize("name", ["exec", "evaluate"])
def test_own_tasks_that_run_code_are_found(name: str, folder: Path) -> None:
    (folder / "helper.py").write_text(
        {
            "exec": "def run(text):\n    exec(text)\n",
            "evaluate": "import evaluate\ncode = evaluate.load('code_eval')\n",
        }[name]
    )
    (folder / "own.py").write_text(
        "from helper import *\ndef score(doc, results):\n    return {}\n"
    )
    path = folder / f"{CHOICES}.yaml"
    path.write_text(path.read_text() + "process_results: !function own.score\n")
    match = "helper.py calls exec" if name == "exec" else "--allow-code-execution"
    with pytest.raises(UserError, match=match):
        load(CHOICES, include=[folder])
