"""Low-rank adapters as layers: each wraps a frozen layer of the model and adds its update.

Names, shapes and initial values are mlx-lm's, so that its commands read what is trained here;
experts have an adapter each, in the published layout [experts, in, rank] and [experts, rank, out].
"""
