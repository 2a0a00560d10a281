"""Which tensors' rounding to INT4 costs how much, and which to keep in BF16 under a byte budget.

    found = sensitivity(load_model("runs/quickstart/training/sft/model"), batches, budget=2_000_000)

See docs/quantization.md.
"""
