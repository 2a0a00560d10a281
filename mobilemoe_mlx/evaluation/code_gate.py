"""Which tasks run text of the model as code, read from their sources before they are loaded.

The harness marks most of them (`unsafe_code`). Programs that they give to `code_eval` run in
processes of their own (program_runner.py). Some run text in this process; those are never run here.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mobilemoe_mlx.errors import UserError

# Functions that run what they are given. SymPy's `parse_expr` and `sympify` call `eval`.
_RUNS_TEXT = {"eval", "exec", "parse_expr", "sympify"}
# The same as attributes of a module.
_RUNS_PROGRAMS = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output", "getoutput"},
    "os": {"system", "popen", "execv", "execve", "spawnv"},
}


_CODE_EVAL = "code_eval"


def check_code(name: str, configs: Iterable[Mapping[str, Any]], allowed: bool) -> bool:
    """Whether the task or group `name` runs programs of the model.

    `configs`: the YAML of its tasks, functions as paths (`TaskIndex`). Raises UserError where that
    is not `allowed`, or would be in a way that no limit holds.
    """
    runs_programs = False
    for config in configs:
        calls = {call for module in set(function_files(config)) for call in code_calls(module)}
        for file, function in sorted(calls):
            if function != _CODE_EVAL:
                raise UserError(
                    f"The task {name} runs text of the model in this process: {file.parent.name}/"
                    f"{file.name} calls {function}. No limit holds there, so it is not run."
                )
        runs_programs |= bool(calls) or config.get("unsafe_code", False) is not False
    if runs_programs and not allowed:
        raise UserError(
            f"The task {name} runs programs that the model writes. Add --allow-code-execution to "
            "run them, each in a process of its own with limits on time, memory and files; that is "
            "no sandbox, so take a machine or container where they can do no harm."
        )
    return runs_programs


def function_files(value: Any) -> Iterator[Path]:
    """The source files of the functions in a YAML's values: "folder/utils.function"."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from function_files(each)
    elif isinstance(value, list):
        for each in value:
            yield from function_files(each)
    elif isinstance(value, str) and os.path.isabs(value):
        folder, _, function = value.rpartition("/")
        module = function.rpartition(".")[0].replace(".", "/")
        path = f"{folder}/{module}.py"
        if module and os.path.isfile(path):  # not Path's, which raises for a long text
            yield Path(path).resolve()


@functools.cache
def code_calls(module: Path) -> frozenset[tuple[Path, str]]:
    """(File, function) of all calls that run text, in `module` and the files that it imports from
    beside it or from the harness's tasks. "code_eval" stands for programs that are run by it."""
    seen: set[Path] = set()
    found: set[tuple[Path, str]] = set()
    waiting = [module]
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        try:
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
        except (SyntaxError, ValueError) as error:  # ValueError: null bytes
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise UserError(
                f"{path}{line}: {getattr(error, 'msg', error)}. A task needs functions of this "
                "file: mend it."
            ) from None
        programs = {
            alias.name
            for node in nodes
            if isinstance(node, ast.ImportFrom) and node.module in _RUNS_PROGRAMS
            for alias in node.names
            if alias.name in _RUNS_PROGRAMS[node.module]
        }
        for node in nodes:
            if isinstance(node, ast.Call) and (name := _runs(node.func, programs)) is not None:
                found.add((path, name))
            if isinstance(node, ast.Constant) and node.value == _CODE_EVAL:
                found.add((path, _CODE_EVAL))
            waiting += _imported(node, path.parent)
    return frozenset(found)


def _runs(function: ast.expr, programs: set[str]) -> str | None:
    if isinstance(function, ast.Name):
        return function.id if function.id in _RUNS_TEXT | programs else None
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        module = function.value.id
        if function.attr in _RUNS_PROGRAMS.get(module, ()):
            return f"{module}.{function.attr}"
        if module == "sympy" and function.attr in _RUNS_TEXT:
            return f"{module}.{function.attr}"
    return None


def _imported(node: ast.AST, folder: Path) -> list[Path]:
    """The files that an import may mean, whether they are there or not."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        folder = folder.joinpath(*[".."] * max(0, node.level - 1)).resolve()
    else:
        return []
    out = []
    for parts in (name.split(".") for name in names if name):
        is_harness = parts[:2] == ["lm_eval", "tasks"]
        place = _tasks_folder().joinpath(*parts[2:]) if is_harness else folder.joinpath(*parts)
        out += [place.with_suffix(".py"), place / "__init__.py"]
    return out


@functools.cache
def _tasks_folder() -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent
