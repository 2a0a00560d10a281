"""Open a saved Core ML package of either form for the proof."""

from __future__ import annotations

from pathlib import Path

from mobilemoe_mlx.mlpackage.model_file import model_file
from mobilemoe_mlx.verify.coreml.core_ops_package import CoreOpsPackage
from mobilemoe_mlx.verify.coreml.custom_layer_package import CustomLayerPackage
from mobilemoe_mlx.verify.saved_export import SavedExport


def open_package(path: Path) -> SavedExport:
    """The package at `path`; raises UserError for anything that is no whole export."""
    # An exported ML Program always has a weight file, and the custom-layer form never has one. To
    # look for it spares a second reading of the model, which holds that form's weights.
    has_weight_file = (model_file(path).parent / "weights").is_dir()
    return CoreOpsPackage(path) if has_weight_file else CustomLayerPackage(path)
