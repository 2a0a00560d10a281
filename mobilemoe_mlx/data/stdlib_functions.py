"""The functions and methods of a module's source, as questions about them need them."""

from __future__ import annotations

import ast
import io
import keyword
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

from mobilemoe_mlx.data.stdlib_modules import Module, fraction
from mobilemoe_mlx.data.stdlib_questions import FunctionNode, definitions, first_paragraph

_LEAST_NAME = 4  # characters of a name that is worth guessing
_LEAST_LINES = 3  # of a function before a name is left out


@dataclass(frozen=True)
class Function:
    """One public function or method that has one definition."""

    module: str
    target: str  # module, class if any, and name
    name: str
    header: str  # "def name(arguments):"
    summary: str  # the docstring's first paragraph; "" where there is no sentence or two
    lines: tuple[str, ...]  # of its source, without their common indent
    node: FunctionNode

    @property
    def arguments(self) -> str:
        """What stands between the header's brackets."""
        return ast.unparse(self.node.args)

    def permuted_arguments(self) -> str | None:
        """`arguments` with two parameters in each other's place, in correct Python.

        Both are without a default value, or both have one, which goes with its parameter; which
        two depends on the function's name alone. None where there are no two: `self` and `cls`
        stand first in any case.
        """
        arguments = self.node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        first = 1 if positional and positional[0].arg in ("self", "cls") else 0
        optional = len(positional) - len(arguments.defaults)
        pairs = [
            (i, j)
            for start, end in ((first, optional), (max(first, optional), len(positional)))
            for i in range(start, end)
            for j in range(i + 1, end)
        ]
        if arguments.posonlyargs or not pairs:  # a slash may stand between the two
            return None
        i, j = pairs[int(fraction(f"permuted {self.target}") * len(pairs))]
        args, defaults = [*arguments.args], [*arguments.defaults]
        args[i], args[j] = args[j], args[i]
        if i >= optional:
            i, j = i - optional, j - optional
            defaults[i], defaults[j] = defaults[j], defaults[i]
        changed = ast.arguments(
            posonlyargs=[],
            args=args,
            vararg=arguments.vararg,
            kwonlyargs=arguments.kwonlyargs,
            kw_defaults=arguments.kw_defaults,
            kwarg=arguments.kwarg,
            defaults=defaults,
        )
        return ast.unparse(changed)

    def repeated_names(self) -> list[tuple[int, int, str]]:
        """(line, column, name) of the names in the body that have stood in the source before.

        Not those that begin a line, or the last character before them would be an indent's.
        """
        seen: set[str] = set()
        found = []
        try:
            tokens = [*tokenize.generate_tokens(io.StringIO("\n".join(self.lines)).readline)]
        except (tokenize.TokenError, IndentationError):
            return []
        for token in tokens:
            name, (row, column) = token.string, token.start
            if token.type != tokenize.NAME or keyword.iskeyword(name) or name == "self":
                continue
            if len(name) < _LEAST_NAME or not token.line[:column].strip():
                continue
            if name in seen and row > _LEAST_LINES:
                found.append((row - 1, column, name))
            seen.add(name)
        return found


def module_functions(module: Module) -> Iterator[Function]:
    """Yield the functions and methods of a module; none of a source that cannot be parsed."""
    try:
        tree = ast.parse(module.text)
    except (SyntaxError, ValueError):
        return
    lines = module.text.split("\n")
    for path, node, _ in definitions(tree):
        if isinstance(node, ast.ClassDef) or node.end_lineno is None:
            continue
        keywords = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
        source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        yield Function(
            module.name,
            f"{module.name}.{path}",
            node.name,
            f"{keywords}def {node.name}({ast.unparse(node.args)}):",
            first_paragraph(ast.get_docstring(node)),
            tuple(textwrap.dedent(source).splitlines()),
            node,
        )
