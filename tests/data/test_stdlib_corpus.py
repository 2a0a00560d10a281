from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from mobilemoe_mlx.data import stdlib_pages
from mobilemoe_mlx.data.stdlib_corpus import PIECE, build_stdlib_corpus

KINDS = ("code", "docs", "qa")
SPLITS = ("train", "heldout")

Corpus = dict[tuple[str, str], list[dict[str, Any]]]


def read(folder: Path) -> Corpus:
    return {
        (kind, split): [
            json.loads(line)
            for line in (folder / f"{kind}.{split}.jsonl").read_text("utf-8").splitlines()
        ]
        for kind in KINDS
        for split in SPLITS
    }


def texts(record: dict[str, Any]) -> list[str]:
    return [record["text"]] if "text" in record else [m["content"] for m in record["messages"]]


def whole_texts(corpus: Corpus, kind: str) -> dict[str, str]:
    """Source -> its text, whose pieces follow one another."""
    found: dict[str, str] = {}
    for split in SPLITS:
        for record in corpus[kind, split]:
            found[record["source"]] = found.get(record["source"], "") + record["text"]
    return found


def top(source: str) -> str:
    return source.split(".")[0]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, build_stdlib_corpus(folder)


@pytest.fixture(scope="module")
def corpus(built: tuple[Path, dict[str, Any]]) -> Corpus:
    return read(built[0])


def test_statistics_are_those_of_the_files(
    built: tuple[Path, dict[str, Any]], corpus: Corpus
) -> None:
    folder, stats = built
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"{kind}.{split}.jsonl" for kind in KINDS for split in SPLITS
    )
    for (kind, split), records in corpus.items():
        characters = sum(len(text) for record in records for text in texts(record))
        assert stats[split][kind] == {"records": len(records), "characters": characters}
        assert characters > (2_000_000 if split == "train" else 100_000)
    heldout = sum(stats["heldout"][kind]["characters"] for kind in KINDS)
    everything = heldout + sum(stats["train"][kind]["characters"] for kind in KINDS)
    assert 0.02 < heldout / everything < 0.10


def test_a_module_is_on_one_side_in_all_three_kinds(corpus: Corpus) -> None:
    tops = {
        split: {top(r["source"]) for kind in KINDS for r in corpus[kind, split]} for split in SPLITS
    }
    assert not tops["train"] & tops["heldout"]
    heldout_code = {top(r["source"]).strip("_") for r in corpus["code", "heldout"]}
    assert len(heldout_code) >= 5


def test_records_are_unique_and_of_their_kind(corpus: Corpus) -> None:
    for (kind, split), records in corpus.items():
        serialized = {json.dumps(record) for record in records}
        # pydoc describes inherited members again, and pieces of that may be alike.
        alike = 0.01 if (kind, split) == ("docs", "train") else 0
        assert len(records) - len(serialized) <= alike * len(records), (kind, split)
        for record in records:
            assert record["source"] and all(text.strip() for text in texts(record))
            if kind == "qa":
                assert [m["role"] for m in record["messages"]] == ["user", "assistant"]
                assert len(texts(record)[1]) <= 2000


def test_texts_to_train_on_are_in_pieces_and_held_out_ones_whole(corpus: Corpus) -> None:
    for kind in ("code", "docs"):
        assert max(len(record["text"]) for record in corpus[kind, "train"]) <= PIECE
        heldout = [record["source"] for record in corpus[kind, "heldout"]]
        assert len(set(heldout)) == len(heldout)
        assert max(len(record["text"]) for record in corpus[kind, "heldout"]) > PIECE


def test_nothing_of_this_machine_leaks(corpus: Corpus) -> None:
    address = re.compile(r"\bat 0x[0-9a-fA-F]{4,}")
    private = [sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], os.getcwd()]
    private += [os.environ["PATH"], sys.executable]
    for records in corpus.values():
        for record in records:
            for text in texts(record):
                assert not address.search(text), record["source"]
                assert not any(path in text for path in private), record["source"]


def test_only_the_standard_library_and_no_tests(corpus: Corpus) -> None:
    for kind in KINDS:
        for record in corpus[kind, "train"] + corpus[kind, "heldout"]:
            source = record["source"]
            if kind == "docs" and source.startswith("topic:"):
                continue
            assert top(source) in sys.stdlib_module_names
            # In "qa" the last part can be a function's name, such as cgi.test.
            modules = set(source.split(".")[:-1] if kind == "qa" else source.split("."))
            assert not {"test", "tests", "site-packages"} & modules


def test_code_is_the_source_itself(corpus: Corpus) -> None:
    code = whole_texts(corpus, "code")
    for module in (ast, inspect, re):
        assert code[module.__name__] == inspect.getsource(module)


def test_docs_hold_builtin_modules_and_the_language_reference(corpus: Corpus) -> None:
    docs = whole_texts(corpus, "docs")
    assert "Return the sine of x" in docs["math"]
    assert "topic:assert" in docs
    assert not re.search(r"^(FILE|DATA)$", "\n".join(docs.values()), re.MULTILINE)
    assert not re.search(r"^ {8}\w.* inherited from \S+:$", docs["queue"], re.MULTILINE)


def test_answers_agree_with_the_live_objects(corpus: Corpus) -> None:
    """Signatures and defaults from the sources are what `inspect` finds by importing."""
    signatures = defaults = 0
    for record in corpus["qa", "train"]:
        question, answer = texts(record)
        found = re.search(
            r"`((?:random|textwrap|shlex|fractions|bisect|heapq|ast)\.[\w.]+)`", question
        )
        if not found:
            continue
        module, *path = found[1].split(".")
        value: Any = importlib.import_module(module)
        for name in path:
            value = getattr(value, name, None)
        if not inspect.isfunction(value):
            continue
        live = inspect.signature(value)
        if "signature" in question:
            source = answer.removeprefix("```python\n").removesuffix("\n```")
            definition = ast.parse(source + ": ...").body[0]
            assert isinstance(definition, ast.FunctionDef)
            arguments = definition.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            named += [a for a in (arguments.vararg, arguments.kwarg) if a]
            assert {a.arg for a in named} == set(live.parameters), question
            signatures += 1
        elif question.startswith("What is the default"):
            match = re.fullmatch(r"The default value of `(\w+)` is `(.+)`\.", answer)
            assert match
            try:
                default = ast.literal_eval(match[2])
            except ValueError:  # a name
                continue
            assert live.parameters[match[1]].default == default, question
            defaults += 1
    assert signatures >= 10 and defaults >= 5


def test_import_statements_work(corpus: Corpus) -> None:
    statements = [
        texts(record)[1].removeprefix("```python\n").removesuffix("\n```")
        for record in corpus["qa", "train"]
        if re.match(
            r"How do I import `(random|json|textwrap|email|email\.message)\.\w+`", texts(record)[0]
        )
    ]
    assert statements
    for statement in statements:
        exec(statement, {})


def test_built_again_it_is_the_same(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """In another process with other environment variables and another hash seed."""
    command = (
        "import sys; from mobilemoe_mlx.data.stdlib_corpus import build_stdlib_corpus as build;"
        "build(sys.argv[1])"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "7", "CANARY": "x", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", command, tmp_path], env=environment, check=True)
    for file in built[0].iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_a_module_that_crashes_costs_its_own_page_only(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "    if name == 'cmd': os.kill(os.getpid(), 9)\n    try:\n"
    renderer = stdlib_pages._RENDERER.replace("    try:\n", crash)
    monkeypatch.setattr(stdlib_pages, "_RENDERER", renderer)
    pages = dict(stdlib_pages._render(["bisect", "cmd", "no_such_module", "heapq", "cmd"]))
    assert list(pages) == ["bisect", "heapq"]


def test_time_that_runs_out_costs_no_page_but_that_of_a_module_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process has time for little more than one slow module; one never ends."""
    slow = "    import time; time.sleep({'cmd': 600, 'bisect': 1.5, 'heapq': 1.5}.get(name, 0))\n"
    renderer = stdlib_pages._RENDERER.replace("    try:\n", slow + "    try:\n")
    monkeypatch.setattr(stdlib_pages, "_RENDERER", renderer)
    monkeypatch.setattr(stdlib_pages, "_RENDER_SECONDS", 4)
    pages = dict(stdlib_pages._render(["bisect", "heapq", "cmd", "heapq", "shlex"]))
    assert list(pages) == ["bisect", "heapq", "shlex"]
