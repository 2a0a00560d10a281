"""Memory and speed of a full-size INT4 folder in transformers, packed and expanded.

Run: python benchmarks/transformers_folder.py [--preset S] [--tokens 4]

Makes a checkpoint of the published layout from random weights, converts it for transformers, and
loads it in two fresh processes, float32 on the CPU: INT4 as it is, and after `dequantize()`. Prints
for each the peak memory above an interpreter that has imported PyTorch and transformers, the
seconds for a prompt of 64 tokens, and those for each token after it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT_TOKENS = 64


def peak_bytes() -> int:
    """The most memory this process has had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(folder: str, form: str, tokens: int) -> dict[str, Any]:
    """Load `folder` and compute `tokens` after a prompt; in a process of its own."""
    import torch
    from transformers import AutoModelForCausalLM

    before = peak_bytes()
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    )
    if form == "expanded":
        model.dequantize()
    # Different tokens, as in real text: repeated ones would route to few experts.
    ids = torch.randint(0, model.config.vocab_size, (1, PROMPT_TOKENS))
    cache, times = None, []
    with torch.no_grad():
        for _ in range(1 + tokens):
            start = time.perf_counter()
            output = model(ids, cache=cache, logits_to_keep=1)
            times.append(time.perf_counter() - start)
            cache, ids = output.cache, output.logits.argmax(dim=-1)
    return {
        "peak": peak_bytes() - before,
        "prompt": times[0],
        "token": sorted(times[1:])[tokens // 2],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="S")
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "FORM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(*options.measure, options.tokens)))
        return 0
    from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
    from mobilemoe_mlx.checkpoint.rewrite import convert
    from mobilemoe_mlx.config import PRESETS

    with tempfile.TemporaryDirectory() as work:
        source, folder = Path(work) / "source", Path(work) / "transformers"
        write_random_checkpoint(source, PRESETS[options.preset], quantized=True)
        nbytes = convert(source, folder, to="transformers").nbytes
        print(f"{options.preset}, INT4: {nbytes:,} bytes of tensors")
        for form in ("packed", "expanded"):
            command = [sys.executable, __file__, "--tokens", str(options.tokens)]
            command += ["--measure", str(folder), form]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout)
            print(
                f"{form}: {found['peak'] / 1e9:.2f} GB, {PROMPT_TOKENS} tokens "
                f"{found['prompt']:.1f} s, then {found['token']:.2f} s for each"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
