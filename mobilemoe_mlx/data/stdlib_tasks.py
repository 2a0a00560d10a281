"""Evaluation tasks about the standard library, in lm-evaluation-harness' own form.

Questions are made from the running Python's own sources: nothing is downloaded or shipped. They are
about modules that the corpus holds out alone, so a model trained on it has not read them.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.all_or_none import all_or_none
from mobilemoe_mlx.data.stdlib_functions import Function, module_functions
from mobilemoe_mlx.data.stdlib_modules import (
    Module,
    family,
    fraction,
    is_heldout,
    is_public,
    library_modules,
)
from mobilemoe_mlx.errors import UserError

GROUP = "stdlib"
"""The harness' name of all of them together."""

CHOICES = 4  # of the questions that have distractors
MOST_QUESTIONS = 400  # of a task, those whose names' hashes are lowest
_CONTEXT = 800  # characters of a cloze's context at most: a few hundred tokens

Record = dict[str, Any]


@dataclass(frozen=True)
class _Task:
    """One task: its questions, and the lines of its YAML that say how they are asked."""

    questions: Callable[[Sequence[Function]], Iterator[tuple[str, Record]]]  # with what they hash
    yaml: str


def build_stdlib_tasks(folder: str | Path) -> dict[str, Any]:
    """Write the tasks NAME.yaml and NAME.jsonl, and the group stdlib.yaml, into `folder`.

    The YAML files name the data by its absolute path, as the harness needs it. The same Python
    gives the same questions. Returns {"python", "heldout_modules", "questions"}; the last maps each
    task to its number. Raises UserError when this Python has no library sources.
    """
    folder = files.resolved(files.output_folder(folder))
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = [m for m in library_modules(library) if is_heldout(m.name) and is_public(m.name)]
    if not modules:
        raise UserError(
            f"{library} holds no Python sources of held-out modules, so no tasks can be made from "
            "it; use a Python installed with its standard library's .py files."
        )
    made = stdlib_questions(modules)
    names = [f"{name}{ending}" for name in made for ending in (".yaml", ".jsonl")]
    targets = [folder / name for name in (*names, f"{GROUP}.yaml")]
    with all_or_none(targets, folder / ".tasks.partial") as work:
        for name, records in made.items():
            lines = "".join(json.dumps(record) + "\n" for record in records)
            files.write(work / f"{name}.jsonl", lines.encode())
            files.write(work / f"{name}.yaml", _yaml(name, folder / f"{name}.jsonl").encode())
        group = "".join(f"  - {name}\n" for name in made)
        files.write(work / f"{GROUP}.yaml", f"group: {GROUP}\ntask:\n{group}".encode())
    return {
        "python": sys.version.split()[0],
        "heldout_modules": sorted({family(m.name) for m in modules}),
        "questions": {name: len(records) for name, records in made.items()},
    }


def stdlib_questions(modules: Sequence[Module]) -> dict[str, list[Record]]:
    """Each task's questions about the functions of `modules`, in the order of their hashes."""
    functions = [function for module in modules for function in module_functions(module)]
    made: dict[str, list[Record]] = {}
    for name, task in _TASKS.items():
        found = sorted(task.questions(functions), key=lambda pair: fraction(f"{name} {pair[0]}"))
        made[name] = [record for _, record in found[:MOST_QUESTIONS]]
    return made


def _from_docstring(functions: Sequence[Function]) -> Iterator[tuple[str, Record]]:
    for each in functions:
        others = _distractors(each, functions)
        if others:
            shown = {"module": each.module, "summary": each.summary}
            yield each.target, shown | _choices(each, others, lambda f: f"{f.name}(")


def _docstring(functions: Sequence[Function]) -> Iterator[tuple[str, Record]]:
    for each in functions:
        others = _distractors(each, functions)
        if others:
            shown = {"module": each.module, "header": each.header}
            yield each.target, shown | _choices(each, others, lambda f: f.summary)


def _argument_order(functions: Sequence[Function]) -> Iterator[tuple[str, Record]]:
    seen = set()
    for each in functions:
        permuted = each.permuted_arguments()
        if (
            permuted is None or (each.module, each.arguments) in seen
        ):  # of `operator`, mostly (a, b)
            continue
        seen.add((each.module, each.arguments))
        pair = [f"({each.arguments}):", f"({permuted}):"]
        answer = int(fraction(f"order {each.target}") * 2)
        yield (
            each.target,
            {
                "module": each.module,
                "summary": each.summary,
                "name": each.name,
                "choices": pair if answer == 0 else pair[::-1],
                "answer": answer,
            },
        )


def _cloze(functions: Sequence[Function]) -> Iterator[tuple[str, Record]]:
    for each in functions:
        places = [
            (_before(each, line, column), name) for line, column, name in each.repeated_names()
        ]
        places = [(before, name) for before, name in places if name in before]
        if not places:
            continue
        before, name = places[int(fraction(f"cloze {each.target}") * len(places))]
        space = " " if before.endswith(" ") else ""  # belongs to the token of the name
        shown = {"context": before.removesuffix(space), "target": space + name}
        yield each.target, {"module": each.module, **shown}


def _before(function: Function, line: int, column: int) -> str:
    """The last lines of the source before a place in it."""
    lines = [*function.lines[:line], function.lines[line][:column]]
    kept: list[str] = []
    for text in reversed(lines):
        if kept and sum(len(k) + 1 for k in kept) + len(text) > _CONTEXT:
            break
        kept.insert(0, text)
    return "\n".join(kept)


def _distractors(each: Function, functions: Sequence[Function]) -> list[Function]:
    """Three documented functions of the same module, or else of its package; [] without them.

    Which ones depends on the names alone. No two have a name or a first paragraph in common, nor
    does one's paragraph begin with another's, whose log-likelihood would be the higher in any case.
    """
    if not each.summary:
        return []
    near = [f for f in functions if f.summary and family(f.module) == family(each.module)]
    near.sort(key=lambda f: (f.module != each.module, fraction(f"{each.target} {f.target}")))
    chosen = [each]
    for other in near:
        if all(other.name != c.name and not _begin_alike(other, c) for c in chosen):
            chosen.append(other)
        if len(chosen) == CHOICES:
            return chosen[1:]
    return []


def _begin_alike(one: Function, other: Function) -> bool:
    first, second = one.summary.rstrip("."), other.summary.rstrip(".")
    return first.startswith(second) or second.startswith(first)


def _choices(
    right: Function, others: Sequence[Function], text: Callable[[Function], str]
) -> Record:
    answer = int(fraction(f"answer {right.target}") * (len(others) + 1))
    shown = [*others[:answer], right, *others[answer:]]
    return {"choices": [text(each) for each in shown], "answer": answer}


def _yaml(name: str, data: Path) -> str:
    head = f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
    return f"{head}    test: {json.dumps(str(data))}\ntest_split: test\n{_TASKS[name].yaml}"


def _metrics(*names: str) -> str:
    lines = ["metric_list:\n"]
    for name in names:
        is_share = name in ("acc", "acc_norm")
        lines += [f"  - metric: {name}\n", f"    aggregation: {'mean' if is_share else name}\n"]
        lines += [f"    higher_is_better: {'true' if is_share else 'false'}\n"]
    return "".join(lines)


_SEVERAL = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\n"
_COMMENT = '"# {{module}}\\n{% if summary %}# {{summary}}\\n{% endif %}'

_TASKS = {
    "stdlib_function": _Task(
        _from_docstring,
        f'{_SEVERAL}doc_to_text: {_COMMENT}def"\n{_metrics("acc", "brier_score")}',
    ),
    "stdlib_docstring": _Task(
        _docstring,
        f'{_SEVERAL}doc_to_text: "# {{{{module}}}}\\n{{{{header}}}}\\n    \\"\\"\\""\n'
        f'target_delimiter: ""\n{_metrics("acc", "acc_norm", "brier_score")}',
    ),
    "stdlib_argument_order": _Task(
        _argument_order,
        f'{_SEVERAL}doc_to_text: {_COMMENT}def {{{{name}}}}"\n'
        f'target_delimiter: ""\n{_metrics("acc", "brier_score")}',
    ),
    "stdlib_cloze": _Task(
        _cloze,
        'output_type: loglikelihood\ndoc_to_text: "{{context}}"\ndoc_to_target: "{{target}}"\n'
        f'target_delimiter: ""\n{_metrics("acc", "perplexity")}',
    ),
}
