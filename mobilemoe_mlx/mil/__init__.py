"""An interpreter of saved MIL programs in numpy; it knows nothing of MobileMoE."""

import mobilemoe_mlx.mlpackage  # noqa: F401 (keeps coremltools quiet)
