"""A training corpus from the running Python's standard library: code, documentation, questions.

Everything comes from files that every Python installation has; nothing is downloaded or shipped.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

HELDOUT_SHARE = 0.05  # of the top-level modules, and of the language reference's topics

# Not prose or code worth learning from: tests, generated tables, this machine's build settings.
_SKIPPED_FOLDERS = {"__pycache__", "test", "tests", "idle_test", "_bundled", "pydoc_data"}
_SKIPPED_FILE = re.compile(
    r"^(__hello__|__phello__|_sysconfigdata\w*|_casefix|stringprep|entities|this)\.py$"
)
_GENERATED_TABLE = "gencodec.py"  # named in the docstring of each of encodings' generated tables

# Importing these has side effects, needs a display, or gives nothing to read.
_NOT_IMPORTED = {"antigravity", "ensurepip", "idlelib", "lib2to3", "this"}
_NOT_IMPORTED |= {"tkinter", "turtle", "turtledemo", "venv", "encodings"}

# Modules that repeat one another's text are held out together.
_FAMILIES = dict.fromkeys(("posix", "nt", "posixpath", "ntpath", "genericpath"), "os")

# Two attributes of nearly every class, as pydoc describes them.
_BOILERPLATE = re.compile(
    r"(?: +Data descriptors defined here:\n\n)?"
    r" +__dict__\n +dictionary for instance variables.*\n\n +__weakref__\n +list of weak ref.*\n"
    r"|(?: +Data descriptors defined here:\n\n)? +__weakref__\n +list of weak references.*\n"
)

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]{4,}")
_RENDER_SECONDS = 60

# Run in a child process: importing the whole standard library must not touch this one, and a module
# that crashes costs only its own page. Prints one JSON line before and one after each module.
_RENDERER = """
import importlib, json, os, pydoc, sys
out = os.fdopen(os.dup(1), "w", encoding="ascii")
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
os.environ.clear()  # it prints as the default value of some parameters
for name in sys.argv[1:]:
    print(json.dumps([name]), file=out, flush=True)
    try:
        page = pydoc.plaintext.document(importlib.import_module(name), name)
        print(json.dumps([name, page]), file=out, flush=True)
    except BaseException:  # SystemExit included
        pass
os._exit(0)  # no exit hooks of the modules
"""


@dataclass(frozen=True)
class _Module:
    name: str  # dotted
    text: str


def build_stdlib_corpus(folder: str | Path) -> dict[str, Any]:
    """Write {code,docs,qa}.{train,heldout}.jsonl into `folder`; about 10 seconds on one core.

    Records of code and docs are {"text", "source"}, those of qa {"messages", "source"}. A module's
    records are all in the same split, in all three kinds. The same Python gives the same files.

    Returns {"python", "heldout_modules", "train", "heldout"}; the last two map each kind to its
    numbers of "records" and "characters". Raises UserError when this Python has no library sources.
    """
    folder = Path(folder)
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = list(_library_modules(library))
    if not modules:
        raise UserError(
            f"{library} holds no Python sources, so no corpus can be made from it; "
            "use a Python installed with its standard library's .py files."
        )
    folder.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, Iterable[dict[str, Any]]] = {
        "code": ({"text": m.text, "source": m.name} for m in modules),
        "docs": [*_pages(modules, library), *_topics()],
        "qa": (record for m in modules if _is_public(m.name) for record in _questions(m)),
    }
    stats: dict[str, Any] = {"python": sys.version.split()[0]}
    stats["heldout_modules"] = sorted({_family(m.name) for m in modules if _is_heldout(m.name)})
    stats |= {"train": {}, "heldout": {}}
    for kind, records in kinds.items():
        splits: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
        for record in records:
            splits["heldout" if _is_heldout(record["source"]) else "train"].append(record)
        for split, members in splits.items():
            _write_jsonl(folder / f"{kind}.{split}.jsonl", members)
            characters = sum(map(_characters, members))
            stats[split][kind] = {"records": len(members), "characters": characters}
    return stats


# --- which modules, and which split -----------------------------------------------------------


def _library_modules(library: Path) -> Iterator[_Module]:
    """Yield the library's modules worth reading, sorted by path; nothing is imported."""
    # Not site-packages, nor what this system adds to the library.
    tops = [path for path in library.iterdir() if path.stem in sys.stdlib_module_names]
    paths = [path for top in tops for path in (top.rglob("*.py") if top.is_dir() else [top])]
    for path in sorted(path for path in paths if path.suffix == ".py"):
        parts = path.relative_to(library).with_suffix("").parts
        if _SKIPPED_FOLDERS.intersection(parts) or _SKIPPED_FILE.match(path.name):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        generated = parts[0] == "encodings" and _GENERATED_TABLE in text[:500]
        if text.strip() and not generated and str(library) not in text:
            name = ".".join(parts).removesuffix(".__init__")
            yield _Module(name, _ADDRESS.sub("", text))


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def _family(source: str) -> str:
    """Return the name whose hash decides a record's split: that of its top-level module.

    A private module goes with the public one it serves: _pydecimal with decimal.
    """
    top = source.split(".")[0]
    if top.startswith("_"):
        bare = top.strip("_")
        candidates = (bare, bare.removeprefix("py"), bare.split("_")[0])
        top = next((name for name in candidates if name in sys.stdlib_module_names), bare)
    return _FAMILIES.get(top, top)


def _is_heldout(source: str) -> bool:
    return _fraction(_family(source)) < HELDOUT_SHARE


def _fraction(key: str) -> float:
    """Return a number in [0, 1) that depends on `key` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


# --- documentation ----------------------------------------------------------------------------


def _pages(modules: list[_Module], library: Path) -> Iterator[dict[str, str]]:
    """Yield pydoc's page of each public module, those written in C included."""
    names = {m.name for m in modules} | sys.stdlib_module_names
    wanted = sorted(
        name for name in names if _is_public(name) and name.split(".")[0] not in _NOT_IMPORTED
    )
    for name, page in _render(wanted):
        text = _tidy(page).replace(str(library), "lib").replace(sys.executable, "python")
        if len(text) >= 200:
            yield {"text": text, "source": name}


def _render(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (module, page) as a child process renders them; one that fails is left out."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    # Sets print in the order of their hashes, so these are fixed.
    environment |= {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "HOME": os.sep}
    while names:
        # -S: without site-packages. -P: without the current folder.
        command = [sys.executable, "-S", "-P", "-B", "-W", "ignore", "-c", _RENDERER, *names]
        try:
            output = subprocess.run(
                command,
                env=environment,
                cwd=os.sep,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_RENDER_SECONDS,
                check=False,
            ).stdout
        except subprocess.TimeoutExpired as error:
            output = error.stdout or b""
        begun = 0
        for line in output.splitlines(keepends=True):
            if not line.endswith(b"\n"):  # cut off by a crash
                break
            name, *page = json.loads(line)
            if page:
                yield name, page[0]
            else:
                begun += 1
        if not begun:
            raise UserError(f"{sys.executable} does not start, so no documentation can be made.")
        names = names[begun:]


def _tidy(page: str) -> str:
    """Drop what says nothing about the module (data values, file names, inherited members) and the
    bars in front of a class's members."""
    lines: list[str] = []
    skipping_section = skipping_members = False
    for line in page.splitlines():
        bar, _, member = line.partition("|  ") if line.startswith("     |") else ("", "", "")
        if line and not line.startswith(" "):  # a section's heading
            skipping_section = line in ("DATA", "FILE", "MODULE REFERENCE")
        if re.search(r"^\w[\w ]* inherited from \S+:$", member):
            skipping_members = True
        elif not bar or member.startswith("-----"):
            skipping_members = False
        if skipping_section or skipping_members:
            continue
        if bar:
            line = "" if member.startswith("-----") or not member else " " * 8 + member
        lines.append(_ADDRESS.sub("", line.rstrip()))
    text = _BOILERPLATE.sub("", "\n".join(lines))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _topics() -> Iterator[dict[str, str]]:
    """Yield the language reference's topics, those that `help("assert")` and the like print."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some Linux packages leave it out
        return
    for name, text in sorted(topics.items()):
        yield {"text": _ADDRESS.sub("", text).strip() + "\n", "source": f"topic:{name}"}


# --- questions and answers --------------------------------------------------------------------

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _questions(module: _Module) -> Iterator[dict[str, Any]]:
    """Yield questions about a module's public functions and classes, answered from its source."""
    try:
        tree = ast.parse(module.text)
    except (SyntaxError, ValueError):
        return
    for question, answer in _module_questions(module.name, tree):
        yield _record(question, answer, module.name)
    for name, node, is_method in _definitions(tree):
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


def _definitions(tree: ast.Module) -> list[tuple[str, _Function | ast.ClassDef, bool]]:
    """Return (qualified name, node, is a method) of what has a docstring and one definition."""
    found: list[tuple[str, _Function | ast.ClassDef, bool]] = []
    for node in tree.body:
        if isinstance(node, _Function | ast.ClassDef):
            found.append((node.name, node, False))
        if isinstance(node, ast.ClassDef):
            methods = (child for child in node.body if isinstance(child, _Function))
            found += [(f"{node.name}.{child.name}", child, True) for child in methods]
    times = Counter(name for name, _, _ in found)
    return [
        (name, node, is_method)
        for name, node, is_method in found
        if times[name] == 1 and _is_public(name) and ast.get_docstring(node)
    ]


def _module_questions(name: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    summary = _summary(ast.get_docstring(tree))
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
    summary = _summary(ast.get_docstring(node))
    if summary:
        question = _pick(
            target, f"What is `{target}`?", f"What does the class `{target}` represent?"
        )
        yield question, summary
    if node.bases:
        bases = " and ".join(f"`{ast.unparse(base)}`" for base in node.bases)
        yield f"Which class does `{target}` derive from?", f"`{node.name}` derives from {bases}."


def _function_questions(target: str, node: _Function, is_method: bool) -> Iterator[tuple[str, str]]:
    what = "method" if is_method else "function"
    docstring = ast.get_docstring(node) or ""
    summary = _summary(docstring)
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
        parameter, default = defaults[int(_fraction(target) * len(defaults))]
        question = f"What is the default value of `{parameter}` in `{target}`?"
        yield question, f"The default value of `{parameter}` is `{default}`."


def _with_body(node: _Function, body: list[ast.stmt]) -> _Function:
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


def _summary(docstring: str | None) -> str:
    """Return the first paragraph on one line, or nothing when it is not a sentence or two."""
    paragraph = " ".join((docstring or "").split("\n\n")[0].split())
    is_prose = 15 <= len(paragraph) <= 400 and not paragraph.startswith((">>>", "$", "---", "==="))
    return paragraph if is_prose and not paragraph.endswith(":") else ""


def _pick(key: str, *wordings: str) -> str:
    return wordings[int(_fraction(key) * len(wordings))]


def _record(question: str, answer: str, source: str) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "source": source}


# --- files ------------------------------------------------------------------------------------


def _characters(record: dict[str, Any]) -> int:
    if "text" in record:
        return len(record["text"])
    return sum(len(message["content"]) for message in record["messages"])


def _write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one record a line."""
    lines = (json.dumps(record) + "\n" for record in records)
    files.write(path, "".join(lines).encode())
