"""MLX against PyTorch: an independent reference of the same model, and the numerics report.

`values` and `measures` serve every comparison; the rest needs the extra `torch`. See
docs/numerics.md for what is measured and how.
"""
