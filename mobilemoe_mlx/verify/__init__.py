"""Proof of Core ML packages in numpy: reads what was saved and never runs the program in memory."""

import mobilemoe_mlx.export.coreml  # noqa: F401 (first, as it keeps coremltools quiet)
