"""The arrows between the rooms of the package, read from its imports (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mobilemoe_mlx

PACKAGE = Path(mobilemoe_mlx.__file__).parent
NAME = PACKAGE.name

# A room is a folder or file at the top of the package. It imports from its own row and from those
# above, and no two rooms import each other.
ROWS = (
    (
        "errors",
        "files",
        "downloads",
        "all_or_none",
        "file_lock",
        "finite_number",
        "tables",
        "text_table",
        "png_pictures",
        "mlx_on_linux",
        "memory",
        "mlpackage",
        "onnx_folder",
        "cpu_kernel",
        "onnx_operators",
        "transformers_model",
    ),
    (
        "config",
        "config_spelling",
        "end_tokens",
        "tokenizer_config",
        "chat_template",
        "jinja_template",
    ),
    ("generation_options", "chat_commands"),
    (
        "int4",
        "linux_cpu",
        "lora",
        "gather_mm",
        "experts",
        "capacity",
        "tensor_names",
        "int4_rounding",
        "model",
        "quantized",
    ),
    (
        "tokenizer_file",
        "chat_format",
        "tokenizer",
        "prompt_tokenizer",
        "checkpoint",
        "accounting",
        "numerics",
        "sampling",
    ),
    ("adapters",),
    ("data", "engines", "conversation_file", "mil"),
    ("generate", "chat"),
    ("train", "export"),
    ("finetune",),
    ("verify", "compare", "bench", "scaling", "evaluation", "sensitivity"),
    ("quickstart",),
    ("cli",),
)
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}

# Optional or slow to import: only inside the functions that need them, or in the files that are
# about them, which others import where they need them.
EXTRAS = {"torch", "matplotlib", "onnx", "onnxruntime", "onnxruntime_genai", "lm_eval"}
ABOUT_EXTRAS = (
    "compare.backward",
    "compare.picture",
    "compare.steps",
    "compare.torch_checkpoint",
    "compare.torch_model",
    "compare.torch_side",
    "compare.torch_training",
    "compare.training_pictures",
    "export.onnx",
    "verify.onnx",
    "engines.onnx",
    "engines.onnx_session",
    "evaluation.harness_model",
    "transformers_model.int4_mobilemoe",
    "transformers_model.layers_mobilemoe",
    "transformers_model.modeling_mobilemoe",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """The modules that import statements among `nodes` name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in TREES else node.module


def at_import(module: str) -> set[str]:
    """The modules that are imported while `module` is, itself and the packages around it too."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in TREES:
            waiting += imported(TREES[name].body)
            waiting += [name.rpartition(".")[0]] if "." in name else []
    return seen


def all_imports() -> Iterator[tuple[str, str]]:
    for module, tree in TREES.items():
        for other in imported(ast.walk(tree)):
            if room(other) and other.split(".")[0] == NAME and room(module):
                yield module, other


def test_every_room_has_its_place() -> None:
    """A new room goes into ROWS, and into the table of CONTRIBUTING.md."""
    assert {room(module) for module in TREES} - {""} == set(ROW_OF)


def test_contributors_are_told_the_rows() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("|---|---|\n")[2].partition("\n\n")[0]
    told = [re.findall(r"`(\w+)/?`", line) for line in table.splitlines()]
    assert [sorted(rooms) for rooms in told] == [sorted(rooms) for rooms in ROWS]


def test_imports_run_one_way() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, other in all_imports()
        if ROW_OF.get(room(other), 0) > ROW_OF.get(room(module), len(ROWS))
    ]
    assert not wrong


def test_no_two_rooms_import_each_other() -> None:
    arrows = {(room(m), room(o)) for m, o in all_imports() if room(m) != room(o)}
    while True:  # take away the rooms that import no other, until nothing is left
        ends = {end for _, end in arrows} - {start for start, _ in arrows}
        if not ends:
            break
        arrows = {(start, end) for start, end in arrows if end not in ends}
    assert not arrows


def test_the_model_stands_alone() -> None:
    """What a converted folder names to mlx-lm, and what a reader reads first."""
    allowed = {f"{NAME}.{name}" for name in ("config", "int4", "experts", "tensor_names")}
    ours = {m for m in imported(ast.walk(TREES[f"{NAME}.model"])) if m.startswith(f"{NAME}.")}
    for module in ours - allowed:  # mathematics that imports nothing of ours outside its room
        inner = {o for o in at_import(module) - at_import(NAME) if o.startswith(f"{NAME}.")}
        assert {room(o) for o in inner} == {room(module)}, module


def test_mil_knows_nothing_of_mobilemoe() -> None:
    ours = {room(o) for m, o in all_imports() if room(m) == "mil"}
    assert ours <= {"mil", *ROWS[0]}


def test_extras_are_imported_where_they_are_used() -> None:
    """By files that are about them, which nothing else imports on its way in."""
    for module in TREES:
        extras = {name.split(".")[0] for name in at_import(module)} & EXTRAS
        inside = f"{module.removeprefix(NAME)}."
        is_about = any(inside.startswith(f".{place}.") for place in ABOUT_EXTRAS)
        assert is_about or not extras, module


@pytest.mark.parametrize("module", [name for name in TREES if room(name) == "cli"])
def test_the_command_line_starts_at_once(module: str) -> None:
    """Help, and what prepares a Linux machine for MLX, come before anything is imported."""
    names = {name.split(".")[0] for name in at_import(module)} - {NAME}
    assert names <= sys.stdlib_module_names
