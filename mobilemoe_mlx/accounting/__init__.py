"""Parameters, bytes and FLOPs of a model, computed from its configuration alone."""
