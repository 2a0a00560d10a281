"""How far two models or engines are apart: the numerics report, forwards, backwards, in training.

PyTorch's side is a reference of the same model written apart from ours, for which the extra `torch`
is needed. See docs/numerics.md for what is measured and how.
"""
