"""Saved Core ML packages for the proof: the ML Program of core ops, and the custom-layer form."""

import mobilemoe_mlx.mlpackage  # noqa: F401 (keeps coremltools quiet)
