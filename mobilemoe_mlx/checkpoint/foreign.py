"""Model files of other programs, which are never read: what to say where one is given."""

from __future__ import annotations

from pathlib import Path

from mobilemoe_mlx.files import visible

_ADVICE = "Download the safetensors files"
_FORMATS = {
    (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"): (
        f"pickles can run code when they are opened and are never read. {_ADVICE}"
    ),
    (".gguf", ".ggml"): (
        "files of llama.cpp are not read, since they hold weights that are rounded in another way. "
        f"{_ADVICE}"
    ),
    (".onnx",): (
        "an ONNX model is run by the engine 'onnx', beside the manifest.json of its export, and is "
        "not read back. Take the checkpoint that it was made from"
    ),
}


def foreign_files(path: Path) -> str | None:
    """Their names and why they are not read, if `path` is one or a folder with some; else None."""
    paths = sorted(visible(path.iterdir())) if path.is_dir() else [path]
    for suffixes, why in _FORMATS.items():
        if names := [p.name for p in paths if p.suffix.lower() in suffixes]:
            return f"{', '.join(names)}: {why}"
    return None
