"""The process of the rival torch: `python -m mobilemoe_mlx.bench.torch_rival JSON`.

The PyTorch reference of `compare` on the same checkpoint, in float32. It has no cache: each token
computes the whole text anew. It speaks as `worker.py` does.
argument: {"folder": ..., "threads": n}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mobilemoe_mlx.bench.worker import say, serve
from mobilemoe_mlx.errors import UserError


def main() -> int:
    """Serve requests until standard input ends."""
    asked = json.loads(sys.argv[1])
    try:
        from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model

        model = load_torch_model(Path(asked["folder"]))
    except UserError as error:
        say({"error": str(error)})
        return 2
    import torch

    torch.set_num_threads(asked["threads"])
    say(
        {
            "description": f"the PyTorch reference, float32, without a cache, "
            f"PyTorch {torch.__version__}, {asked['threads']} threads"
        }
    )

    class Session:
        def __init__(self, context: int) -> None:
            self._tokens: list[int] = []

        def feed(self, token_ids: list[int]) -> None:
            self._tokens += token_ids
            with torch.inference_mode():
                model(torch.tensor([self._tokens]))

    serve(Session)
    return 0


if __name__ == "__main__":
    sys.exit(main())
