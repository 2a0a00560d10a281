"""Open a saved Core ML package of either form for the proof."""

from __future__ import annotations

from pathlib import Path

from mobilemoe_mlx.mlpackage.model_file import model_file
from mobilemoe_mlx.verify.coreml.core_ops_package import CoreOpsPackage
from mobilemoe_mlx.verify.coreml.custom_layer_package import CustomLayerPackage
from mobilemoe_mlx.verify.saved_export import SavedExport


def open_package(path: Path) -> SavedExport:
    """The package at `path`; raises UserError for anything that is no whole export."""
    # An ML Program of ours always has a weight file, and the other form never has. Its model, which
    # holds the weights, is read only once so.
    has_weight_file = (model_file(path).parent / "weights").is_dir()
    return CoreOpsPackage(path) if has_weight_file else CustomLayerPackage(path)
