"""Open a saved export of any format, and read which model it says it is."""

from __future__ import annotations

from pathlib import Path

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.files import parse_json, visible
from mobilemoe_mlx.onnx_folder.extra import need
from mobilemoe_mlx.onnx_folder.folder import MODEL, is_onnx_folder
from mobilemoe_mlx.verify.saved_export import SavedExport


def open_export(path: Path) -> SavedExport:
    """The export at `path`, whose format's libraries are imported now.

    Raises UserError for what is no whole export, and where the extra that it needs is absent.
    """
    if not path.exists():
        raise UserError(f"There is no {path}.")
    if is_onnx(path):
        need("onnx", "onnxruntime")
        from mobilemoe_mlx.verify.onnx.onnx_export import ONNXExport

        return ONNXExport(path)
    if not (path / "Manifest.json").exists():
        raise UserError(
            f"{path} is {_what_it_is(path)}, and no export: give a .mlpackage, or a folder that "
            "`mobilemoe export onnx` wrote."
        )
    from mobilemoe_mlx.verify.coreml.open_package import open_package

    return open_package(path)


def _what_it_is(path: Path) -> str:
    if path.is_file():
        return "a file"
    if not any(visible(path.iterdir())):
        return "an empty folder"
    if path.suffix == ".mlpackage":
        return "a folder without the Manifest.json of a .mlpackage"
    if (path / "config.json").is_file():
        return "a checkpoint, or the folder of resources beside a .mlpackage"
    return "a folder of other things"


def is_onnx(path: Path) -> bool:
    """Whether `path` is an ONNX export, or a damaged one, to say what is wrong with it."""
    return is_onnx_folder(path) or (path / MODEL).is_file()


def described_args(saved: SavedExport) -> ModelArgs:
    """The configuration that an export says it has; raises UserError where it says none."""
    if (config := saved.user_defined.get("config")) is None:
        raise UserError(f"{saved.path} does not say which model it is: it is no export of ours.")
    return ModelArgs.from_dict(parse_json(config, f"The model's description in {saved.path}"))
