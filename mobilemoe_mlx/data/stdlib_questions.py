"""Questions about the standard library, answered from its sources."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mobilemoe_mlx.data.stdlib_modules import Module, fraction, is_public

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def questions(module: Module) -> Iterator[dict[str, Any]]:
    """Yield questions about a module's public functions and classes, answered from its source."""
    try:
        tree = ast.parse(module.text)
    except (SyntaxError, ValueError):
        return
    for question, answer in _module_questions(module.name, tree):
        yield _record(question, answer, module.name)
    for name, node, is_method in definitions(tree):
        if not ast.get_docstring(node):
            continue
        target = f"{module.name}.{name}"
        if isinstance(node, ast.ClassDef):
            pairs = list(_class_questions(target, node))
        else:
            pairs = list(_function_questions(target, node, is_method))
        if not is_method:
            statement = f"from {module.name} import {name}"
            pairs.append((f"How do I import `{target}`?", f"```python\n{statement}\n```"))
        for question, answer in pairs:
            yield _record(question, answer, target)


def definitions(tree: ast.Module) -> list[tuple[str, FunctionNode | ast.ClassDef, bool]]:
    """Return (qualified name, node, is a method) of what is public and has one definition."""
    found: list[tuple[str, FunctionNode | ast.ClassDef, bool]] = []
    for node in tree.body:
        if isinstance(node, FunctionNode | ast.ClassDef):
            found.append((node.name, node, False))
        if isinstance(node, ast.ClassDef):
            methods = (child for child in node.body if isinstance(child, FunctionNode))
            found += [(f"{node.name}.{child.name}", child, True) for child in methods]
    times = Counter(name for name, _, _ in found)
    return [
        (name, node, is_method)
        for name, node, is_method in found
        if times[name] == 1 and is_public(name)
    ]


def _module_questions(name: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    summary = first_paragraph(ast.get_docstring(tree))
    if summary:
        yield (
            _pick(
                name,
                f"What is the module `{name}` for?",
                f"What does Python's `{name}` module do?",
                f"Describe the standard library module `{name}`.",
            ),
            summary,
        )
    for kind, types in (("functions", (ast.FunctionDef,)), ("classes", (ast.ClassDef,))):
        nodes = (node.name for node in tree.body if isinstance(node, types))
        names = [n for n in dict.fromkeys(nodes) if not n.startswith("_")]
        if 1 < len(names) <= 25:
            answer = ", ".join(f"`{n}`" for n in names)
            yield f"Which public {kind} are defined at the top level of `{name}`?", answer + "."


def _class_questions(target: str, node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    summary = first_paragraph(ast.get_docstring(node))
    if summary:
        question = _pick(
            target, f"What is `{target}`?", f"What does the class `{target}` represent?"
        )
        yield question, summary
    if node.bases:
        bases = " and ".join(f"`{ast.unparse(base)}`" for base in node.bases)
        yield f"Which class does `{target}` derive from?", f"`{node.name}` derives from {bases}."


def _function_questions(
    target: str, node: FunctionNode, is_method: bool
) -> Iterator[tuple[str, str]]:
    what = "method" if is_method else "function"
    docstring = ast.get_docstring(node) or ""
    summary = first_paragraph(docstring)
    if summary:
        yield (
            _pick(
                target,
                f"What does `{target}` do?",
                f"Explain the {what} `{target}`.",
                f"What is `{target}` for?",
            ),
            summary,
        )
    body = node.body[1:] or [ast.Pass()]
    bare = ast.unparse(_with_body(node, body))
    if 15 <= len(docstring) <= 800 and len(bare) <= 1500:
        yield f"Write the docstring of this {what}:\n\n```python\n{bare}\n```", docstring
    if node.decorator_list:  # a property, say, is not called as it is written
        return
    header = ast.unparse(_with_body(node, [ast.Expr(ast.Constant(...))]))
    signature = header.removesuffix("...").rstrip().removesuffix(":")
    yield (
        _pick(
            target + "()",
            f"What is the signature of `{target}`?",
            f"How is the {what} `{target}` declared?",
        ),
        f"```python\n{signature}\n```",
    )
    defaults = _defaults(node.args)
    if defaults:
        parameter, default = defaults[int(fraction(target) * len(defaults))]
        question = f"What is the default value of `{parameter}` in `{target}`?"
        yield question, f"The default value of `{parameter}` is `{default}`."


def _with_body(node: FunctionNode, body: list[ast.stmt]) -> FunctionNode:
    changed = copy.copy(node)
    changed.body = body
    return changed


def _defaults(arguments: ast.arguments) -> list[tuple[str, str]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    pairs = [*zip(with_default, arguments.defaults, strict=True)]
    keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    pairs += [(argument, default) for argument, default in keyword if default is not None]
    return [(argument.arg, ast.unparse(default)) for argument, default in pairs]


def first_paragraph(docstring: str | None) -> str:
    """Return the first paragraph on one line, or nothing when it is not a sentence or two."""
    paragraph = " ".join((docstring or "").split("\n\n")[0].split())
    is_prose = 15 <= len(paragraph) <= 400 and not paragraph.startswith((">>>", "$", "---", "==="))
    return paragraph if is_prose and not paragraph.endswith(":") else ""


def _pick(key: str, *wordings: str) -> str:
    return wordings[int(fraction(key) * len(wordings))]


def _record(question: str, answer: str, source: str) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "source": source}
