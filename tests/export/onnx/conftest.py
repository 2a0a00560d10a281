"""One checkpoint, and folders exported from it in each form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_model import small_args
from varied_model import write_varied

pytest.importorskip("onnxruntime_genai")

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.onnx.folder import export_onnx
from mobilemoe_mlx.export.onnx.options import ExportOptions

CONTEXT = 192


@pytest.fixture(scope="session")
def varied_args() -> ModelArgs:
    """Three layers; the ids of the tokenizer's begin, end and end of turn."""
    return small_args(vocab_size=480, bos_token_id=1, eos_token_id=(2, 5))


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, varied_args: ModelArgs, tokenizer_folder: Path
) -> Path:
    """An INT4 checkpoint with a SentencePiece tokenizer; do not write into it."""
    return write_varied(
        tmp_path_factory.mktemp("onnx") / "checkpoint", varied_args, tokenizer_folder
    )


Export = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Makes an export of `checkpoint` by its options, once; do not write into it."""
    made: dict[ExportOptions, Path] = {}

    def export(form: str, **choices: object) -> Path:
        options = ExportOptions(form=form, context=CONTEXT, requantize=form == "qmoe", **choices)
        if options not in made:
            folder = tmp_path_factory.mktemp("exports") / form
            made[options] = export_onnx(checkpoint, folder, options).folder
        return made[options]

    return export
