"""Conversations on which a tiny checkpoint is fine-tuned in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from training_fixtures import WORDS

# A run of a second or two: eight steps of two rows.
SHORT = ("steps=8", "batch_size=2", "data.context=48", "checkpoint_every=2", "evaluate_every=4")


def write_conversations(path: Path, count: int = 60) -> Path:
    """Conversations whose answer repeats the question's words."""
    rng = random.Random(0)
    lines = []
    for _ in range(count):
        question = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 5)))
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": question},
        ]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path
