"""MLX against PyTorch: an independent reference of the same model, and the numerics report.

All but the second reading of config.json needs the extra `torch`. See docs/numerics.md for what is
measured and how.
"""
