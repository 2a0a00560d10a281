"""The files of an ONNX export, and what its manifest says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

FORMAT = "mobilemoe-onnx"  # of the manifest
VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
GENAI_CONFIG = "genai_config.json"

PREFIX = "mobilemoe."  # of the metadata in the model's file


@dataclass(frozen=True)
class ONNXFolder:
    """An export that was found whole, as far as names of files go."""

    path: Path
    manifest: dict[str, Any]
    operators: Path | None  # the library of its own operators, if it needs one
    runtime_threads: int | None  # that the runtime itself is to have; None: its own choice

    @property
    def form(self) -> str:
        """Which of the forms it is."""
        return str(self.manifest["form"])

    @property
    def context(self) -> int:
        """Positions of its cache."""
        return int(self.manifest["context"])

    @property
    def model(self) -> Path:
        """The graph."""
        return self.path / MODEL


def is_onnx_folder(path: Path) -> bool:
    """Whether `path` is an ONNX export of ours, of whatever version."""
    try:
        content = files.read_json(path / MANIFEST)
    except UserError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def open_onnx_folder(path: Path) -> ONNXFolder:
    """The export in `path`; raises UserError for a folder that is not ours or lacks a file."""
    if not is_onnx_folder(path):
        raise UserError(
            f"{path} is no folder that `mobilemoe export onnx` wrote: it has no {MANIFEST} of the "
            f"format {FORMAT}."
        )
    manifest = files.read_json(path / MANIFEST)
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path / MANIFEST} is {FORMAT} version {manifest.get('version')}; version {VERSION} "
            "is known here."
        )
    missing = [name for name in (MODEL, WEIGHTS, GENAI_CONFIG) if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: export again.")
    try:
        session = files.read_json(path / GENAI_CONFIG)["model"]["decoder"]["session_options"]
        library = session.get("custom_ops_library")
        operators = None if library is None else path / library
        threads = session.get("intra_op_num_threads")
        found = ONNXFolder(path, manifest, operators, threads)
        found.form, found.context  # noqa: B018 (KeyError where they are absent)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error!r}): export again.") from None
    if found.operators is not None and not found.operators.is_file():
        raise UserError(
            f"{path} lacks {found.operators.name}, the operators that its form {found.form} needs: "
            "export again."
        )
    return found
