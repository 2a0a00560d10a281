"""Documentation of the standard library: pydoc's pages, and the language reference's topics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mobilemoe_mlx.data.stdlib_modules import ADDRESS, Module, is_public
from mobilemoe_mlx.errors import UserError

# Importing these has side effects, needs a display, or gives nothing to read.
_NOT_IMPORTED = {"antigravity", "ensurepip", "idlelib", "lib2to3", "this"}
_NOT_IMPORTED |= {"tkinter", "turtle", "turtledemo", "venv", "encodings"}

# Two attributes of nearly every class, as pydoc describes them.
_BOILERPLATE = re.compile(
    r"(?: +Data descriptors defined here:\n\n)?"
    r" +__dict__\n +dictionary for instance variables.*\n\n +__weakref__\n +list of weak ref.*\n"
    r"|(?: +Data descriptors defined here:\n\n)? +__weakref__\n +list of weak references.*\n"
)

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


def pages(modules: list[Module], library: Path) -> Iterator[dict[str, str]]:
    """Yield pydoc's page of each public module, those written in C included."""
    names = {m.name for m in modules} | sys.stdlib_module_names
    wanted = sorted(
        name for name in names if is_public(name) and name.split(".")[0] not in _NOT_IMPORTED
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
        timed_out = False
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
            output, timed_out = error.stdout or b"", True
        begun, in_progress = 0, False
        for line in output.splitlines(keepends=True):
            if not line.endswith(b"\n"):  # cut off by a crash
                break
            name, *page = json.loads(line)
            in_progress = not page
            if page:
                yield name, page[0]
            else:
                begun += 1
        if not begun:
            raise UserError(f"{sys.executable} does not start, so no documentation can be made.")
        # On a busy machine the time may run out although no module hangs: begin again with the one
        # that was interrupted, which then has all of the time to itself.
        if timed_out and in_progress and begun > 1:
            begun -= 1
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
        lines.append(ADDRESS.sub("", line.rstrip()))
    text = _BOILERPLATE.sub("", "\n".join(lines))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def topics() -> Iterator[dict[str, str]]:
    """Yield the language reference's topics, those that `help("assert")` and the like print."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some Linux packages leave it out
        return
    for name, text in sorted(topics.items()):
        yield {"text": ADDRESS.sub("", text).strip() + "\n", "source": f"topic:{name}"}
