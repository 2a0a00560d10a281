"""Adapters of a checkpoint: what they are made of, how they are attached, stored and fused."""
