"""Core ML packages of MobileMoE: the MIL program, its MoE op, the custom-layer form, the files."""

import mobilemoe_mlx.mlpackage  # noqa: F401 (keeps coremltools quiet)
