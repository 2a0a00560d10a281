"""Tasks about the standard library: right answers, honest distractors, the harness' own form."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.data.stdlib_modules import Module, is_heldout
from mobilemoe_mlx.data.stdlib_tasks import build_stdlib_tasks, stdlib_questions

SOURCE = '''
def wrap(text, width=70, indent=""):
    """Wrap one paragraph of text."""
    pieces = text.split()
    return join(pieces, width)

def shorten(text, width):
    """Collapse and truncate a text."""
    return text[:width]

def dedent(text):
    """Remove common leading whitespace."""
    return text

class Wrapper:
    def fill(self, text, *, count):
        """Fill one paragraph, as a string."""

    def _private(self, one, two):
        """Not asked about by anyone."""
'''
Tasks = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    build_stdlib_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(folder: Path) -> Tasks:
    return {
        path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


def test_questions_of_a_small_module() -> None:
    made = stdlib_questions([Module("sample", SOURCE)])
    by_name = {q["choices"][q["answer"]]: q for q in made["stdlib_function"]}
    assert set(by_name) == {"wrap(", "shorten(", "dedent(", "fill("}
    assert all(set(q["choices"]) == set(by_name) for q in by_name.values())
    assert by_name["dedent("]["summary"] == "Remove common leading whitespace."
    headers = {q["header"]: q["choices"][q["answer"]] for q in made["stdlib_docstring"]}
    assert headers["def shorten(text, width):"] == "Collapse and truncate a text."
    orders = {q["name"]: q for q in made["stdlib_argument_order"]}
    assert set(orders) == {"wrap", "shorten"}  # of one argument, or one before `*`, there is none
    assert set(orders["shorten"]["choices"]) == {"(text, width):", "(width, text):"}
    wrap = orders["wrap"]
    assert wrap["choices"][wrap["answer"]] == "(text, width=70, indent=''):"
    assert wrap["choices"][1 - wrap["answer"]] == "(text, indent='', width=70):"
    (cloze,) = (q for q in made["stdlib_cloze"] if "def wrap" in q["context"])
    whole = cloze["context"] + cloze["target"]
    assert whole in SOURCE and cloze["target"].strip() in ("text", "pieces", "width")


def test_only_modules_that_the_corpus_holds_out(tasks: Tasks) -> None:
    modules = {record["module"] for records in tasks.values() for record in records}
    assert len(modules) >= 3 and all(is_heldout(module) for module in modules)


def test_answers_are_those_of_the_library(tasks: Tasks) -> None:
    """By inspection of the imported modules, where they have the function at their top."""
    checked = 0
    for record in tasks["stdlib_docstring"]:
        name = record["header"].partition("(")[0].removeprefix("def ")
        function = getattr(importlib.import_module(record["module"]), name, None)
        if not inspect.isfunction(function) or "(self" in record["header"]:
            continue
        documented = " ".join((inspect.getdoc(function) or "").split())
        shown = [documented.startswith(choice) for choice in record["choices"]]
        assert shown == [i == record["answer"] for i in range(len(shown))]
        checked += 1
    assert checked > 5
    for record in tasks["stdlib_argument_order"]:
        right, wrong = record["choices"][record["answer"]], record["choices"][1 - record["answer"]]
        ast.parse(f"def f{wrong} pass")  # correct Python, or it would be known by that
        names = [sorted(a.arg for a in ast.walk(ast.parse(f"def f{c} pass")) if hasattr(a, "arg"))
                 for c in (right, wrong)]  # fmt: skip
        assert names[0] == names[1] and right != wrong


def test_questions_are_told_apart(tasks: Tasks) -> None:
    assert {"stdlib_function", "stdlib_docstring", "stdlib_argument_order", "stdlib_cloze"} == {
        *tasks
    }
    for name, records in tasks.items():
        assert len(records) >= 20, name
        for record in records:
            if "choices" in record:
                assert len(set(record["choices"])) == len(record["choices"])
                assert 0 <= record["answer"] < len(record["choices"])
            else:
                assert record["target"].strip() in record["context"]
                assert not record["context"].endswith(" ")
    answers = [record["answer"] for record in tasks["stdlib_function"]]
    assert all(answers.count(i) > len(answers) / 8 for i in range(4))  # the place tells nothing


def test_the_same_python_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    build_stdlib_tasks(tmp_path)
    for path in folder.glob("*.jsonl"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("datasets_cache")
def test_the_harness_reads_them(folder: Path, tasks: Tasks) -> None:
    harness = pytest.importorskip("lm_eval.tasks")
    manager = harness.TaskManager(include_path=str(folder), include_defaults=False)
    (loaded,) = harness.get_task_dict(["stdlib"], manager).values()
    assert set(loaded) == set(tasks)
    for name, task in loaded.items():
        documents = list(task.eval_docs)
        assert len(documents) == len(tasks[name])
        task.build_all_requests(limit=1, rank=0, world_size=1)
        contexts, continuations = zip(*(each.args for each in task.instances), strict=True)
        record = tasks[name][0]
        if name == "stdlib_cloze":
            assert (contexts, continuations) == ((record["context"],), (record["target"],))
            continue
        space = " " if name == "stdlib_function" else ""
        assert [*continuations] == [space + choice for choice in record["choices"]]
        assert contexts[0].startswith(f"# {record['module']}\n")
        assert contexts[0].endswith(
            {
                "stdlib_function": f"# {record.get('summary')}\ndef",
                "stdlib_docstring": f'{record.get("header")}\n    """',
                "stdlib_argument_order": f"\ndef {record.get('name')}",
            }[name]
        )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "made"
    assert main(["corpus", str(target), "--tasks"]) == 0
    said = capsys.readouterr().out
    assert f"mobilemoe eval MODEL --include {target} --tasks stdlib" in said
    assert (target / "stdlib.yaml").is_file() and not list(target.glob(".*"))
    (tmp_path / "file").write_text("")
    assert main(["corpus", str(tmp_path / "file"), "--tasks"]) == 2
    assert "is a file" in capsys.readouterr().err
