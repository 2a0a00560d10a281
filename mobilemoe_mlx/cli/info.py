"""`mobilemoe info [NAME]`: what a size, checkpoint, package, run, adapter or recipe is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.config import PRESETS
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.onnx_folder.extra import need
from mobilemoe_mlx.onnx_folder.folder import MODEL, is_onnx_folder

_KNOWN = (
    f"{', '.join(PRESETS)}; a model that the paper compares with (MobileLLM-Pro, OLMoE-1B-7B, "
    "...); a config.json; a checkpoint, a training run or an adapter (folders); a Hugging Face "
    "repository id; an exported .mlpackage, its resources folder or an ONNX export; a recipe or a "
    "mixture (.toml)"
)

EXAMPLES = (
    "mobilemoe info",
    "mobilemoe info S --context 2048",
    "mobilemoe info runs/quickstart/MobileMoE-tiny.mlpackage --json runs/package.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "name",
        nargs="?",
        help=f"{_KNOWN} (default: all sizes)",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help="count attention and cache at this context (default: the longest the model takes)",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_json(args.json)
    record, text = _describe(args.name, args.context)
    write_json(args.json, record)
    if not prints_json(args.json):
        print(text)


def _describe(name: str | None, context: int | None) -> tuple[Any, str]:
    """The description as plain JSON and as text. What describes it is imported when it is known."""
    path = None if name is None or name in PRESETS else files.user_path(name)
    if path is None or not path.exists() or _is_checkpoint(path):
        from mobilemoe_mlx.accounting.describe import describe, describe_presets, table

        if name is None:
            presets = describe_presets(context)
            return [each.to_dict() for each in presets], table(presets)
        described = describe(name, context)
        return described.to_dict(), table([described])
    if context is not None:
        raise UserError(
            f"--context is for a size or a checkpoint, and {name} is neither: the context is fixed "
            "when a package is exported."
        )
    if path.suffix == ".toml":
        return _toml(path)
    if is_onnx_folder(path) or (path / MODEL).is_file():  # the latter, to say what is wrong
        return _onnx(path)
    package = _package_path(path)
    return _folder(path, name) if package is None else _package(package)


def _is_checkpoint(path: Path) -> bool:
    if path.suffix == ".json":
        return path.is_file()
    # Exports have a config.json too: resources beside a manifest, ONNX folders beside a model.
    if (path / "manifest.json").is_file():
        return False
    is_onnx = (path / MODEL).is_file() and not any(path.glob("*.safetensors"))
    return (path / "config.json").exists() and not is_onnx


def _package_path(path: Path) -> Path | None:
    """The package that `path` is, or is the resources folder of."""
    if path.suffix == ".mlpackage" or (path / "Manifest.json").is_file():
        return path
    if not (path / "manifest.json").is_file():
        return None
    from mobilemoe_mlx.mlpackage.interrupts import import_coremltools

    import_coremltools()
    from mobilemoe_mlx.export.coreml.resources import package_of

    return package_of(path)


def _package(path: Path) -> tuple[Any, str]:
    from mobilemoe_mlx.mlpackage.interrupts import import_coremltools

    import_coremltools()
    from mobilemoe_mlx.export.coreml.package_info import describe_package
    from mobilemoe_mlx.export.coreml.package_text import text

    info = describe_package(path)
    return info.to_dict(), text(info)


def _onnx(path: Path) -> tuple[Any, str]:
    need("onnx")
    from mobilemoe_mlx.export.onnx.folder_info import describe_onnx

    info = describe_onnx(path)
    return info.to_dict(), info.text()


def _toml(path: Path) -> tuple[Any, str]:
    if "sources" in files.read_toml(path):
        from mobilemoe_mlx.data.mixture_info import describe_mixture

        mixture = describe_mixture(path)
        return mixture.to_dict(), mixture.text()
    from mobilemoe_mlx.finetune.recipe_info import describe_finetune_recipe, is_finetune_recipe

    if is_finetune_recipe(path):
        finetuning = describe_finetune_recipe(path)
        return finetuning.to_dict(), finetuning.text()
    from mobilemoe_mlx.train.recipe_info import describe_recipe

    recipe = describe_recipe(path)
    return recipe.to_dict(), recipe.text()


def _folder(path: Path, name: str | None) -> tuple[Any, str]:
    from mobilemoe_mlx.adapters.adapter_info import describe_adapter, is_adapter
    from mobilemoe_mlx.checkpoint.foreign import foreign_files
    from mobilemoe_mlx.finetune.run_info import describe_finetuning, is_finetuning
    from mobilemoe_mlx.train.run_info import describe_run, is_run

    if is_adapter(path):
        adapter = describe_adapter(path)
        return adapter.to_dict(), adapter.text()
    for folder in (path, path / "training"):  # the second: of a quickstart
        if is_run(folder) and is_finetuning(folder):
            finetuning = describe_finetuning(folder)
            return finetuning.to_dict(), finetuning.text()
        if is_run(folder):
            run = describe_run(folder)
            return run.to_dict(), run.text()
    if (why := foreign_files(path)) is not None:
        raise UserError(f"{name} cannot be described: {why}.")
    raise UserError(f"{name} is nothing that can be described here: {_KNOWN}.")
