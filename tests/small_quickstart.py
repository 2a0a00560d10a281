"""A quickstart of seconds: what stands at runs/quickstart wherever examples are tried."""

from __future__ import annotations

from pathlib import Path

from mobilemoe_mlx.quickstart.run import quickstart

SMALL = (
    "model.num_hidden_layers=2",
    "model.hidden_size=64",
    "model.num_attention_heads=1",
    "model.intermediate_size=32",
    "model.intermediate_size_mlp=64",
    "model.num_local_experts=8",
    "model.vocab_size=512",
    "optimizer.warmup_steps=1",
    "data.context=64",
    "data.heldout_tokens=1024",
    "tokens=3000",
)


def make_quickstart(home: Path) -> None:
    """Make `home`/runs/quickstart as `mobilemoe quickstart` does in `home`."""
    quickstart(home / "runs" / "quickstart", overrides=SMALL, say=lambda _: None)
