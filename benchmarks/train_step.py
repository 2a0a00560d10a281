"""A whole training step of ours against plain PyTorch's: tiny, and one full-size layer of S.

Run: python benchmarks/train_step.py [--rounds 7] [--threads 2] [--models tiny S]. Both take the
same optimiser step (forward, backward, clipping, AdamW, balancing) on the same batch from the same
weights, in turn, and the loss must be the same. PyTorch's is compare/torch_model.py: a loop over
the experts, `scaled_dot_product_attention` off. Prints the medians, their ratio, and the machine.
On Linux, OpenBLAS is used as the command line uses it; PyTorch brings a BLAS of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

ROWS = {"tiny": (16, 256), "S": (2, 256)}  # rows and tokens per row
VECTOR_FLAGS = ("avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--models", nargs="+", choices=tuple(ROWS), default=list(ROWS))
    options = parser.parse_args()
    # Read by the BLAS libraries while they are loaded.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(options.threads)
    print(machine(), f"{options.threads} threads", sep=", ")
    for name in options.models:
        compare(name, options.rounds, options.threads)


def machine() -> str:
    """The processor's name and the vector instructions that it has."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(
        (part.strip() for part in line.split(":", 1))
        for line in info.read_text(encoding="utf-8").splitlines()
        if ":" in line
    )
    flags = fields.get("flags", fields.get("Features", "")).split()
    return f"{fields.get('model name', '?')} ({' '.join(f for f in VECTOR_FLAGS if f in flags)})"


def compare(name: str, rounds: int, threads: int) -> None:
    from mobilemoe_mlx import mlx_on_linux

    mlx_on_linux.prepare()
    import mlx.core as mx
    import numpy as np
    import torch
    import torch.nn.functional as F
    from mlx.utils import tree_flatten

    from mobilemoe_mlx.compare.torch_model import TorchMobileMoE
    from mobilemoe_mlx.config import preset
    from mobilemoe_mlx.data.packing import Batch
    from mobilemoe_mlx.model import Model
    from mobilemoe_mlx.train.recipe import ComputeConfig, DataConfig, OptimizerConfig, StageConfig
    from mobilemoe_mlx.train.step import Trainer

    torch.set_num_threads(threads)
    rows, length = ROWS[name]
    args = preset(name)
    if name == "S":  # one layer; the head of S alone would be most of the step
        args = dataclasses.replace(
            args,
            num_hidden_layers=1,
            no_rope_layers=(),
            layer_types=(),
            vocab_size=2048,
            bos_token_id=0,
            eos_token_id=(1,),
        )
    config = StageConfig(
        data=DataConfig("unused", length),
        optimizer=OptimizerConfig(peak_lr=1e-4),
        tokens=1000 * rows * length,
        batch_size=rows,
        compute=ComputeConfig("float32"),
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, args.vocab_size, (rows, length + 1)).astype(np.int32)
    ones = np.ones((rows, length), np.float32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], ones, np.zeros((rows, length), np.int32))

    mx.random.seed(0)
    model = Model(args)
    theirs = TorchMobileMoE(args)
    theirs.load_state_dict(
        {
            n.removesuffix(".weight") if ".experts." in n else n: torch.tensor(np.array(value))
            for n, value in tree_flatten(model.parameters())
        }
    )
    trainer = Trainer(model, config)
    matrices = [p for p in theirs.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.requires_grad and p.ndim < 2]
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=options.peak_lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
    )
    inputs = torch.tensor(tokens[:, :-1], dtype=torch.int64)
    targets = torch.tensor(tokens[:, 1:], dtype=torch.int64)

    def torch_step() -> float:
        output = theirs(inputs)
        loss = F.cross_entropy(output.logits.flatten(0, 1), targets.flatten())
        z = sum(r.logits.logsumexp(-1).square().mean() for r in output.routing)
        optimizer.zero_grad()
        (loss + config.routing.z_loss * z).backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *vectors], options.clip_norm)
        optimizer.step()
        with torch.no_grad():
            for layer, routing in zip(theirs.model.layers, output.routing, strict=True):
                counts = torch.bincount(
                    routing.experts.flatten(), minlength=args.num_local_experts
                ).float()
                layer.feed_forward.expert_bias += config.routing.bias_update_rate * torch.sign(
                    counts.mean() - counts
                )
        return loss.item()

    def ours_step() -> float:
        return trainer.run(batch).loss

    steps: dict[str, Callable[[], float]] = {"PyTorch": torch_step, "ours": ours_step}
    first = {key: step() for key, step in steps.items()}
    assert abs(first["ours"] - first["PyTorch"]) < 1e-4 * first["PyTorch"], first
    seconds: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[key].append(time.perf_counter() - start)
    what = "one layer, vocabulary 2,048" if name == "S" else "whole"
    print(f"\n{name} ({what}), {rows} x {length} tokens, median of {rounds} rounds in turn")
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    for key, median in medians.items():
        best = min(seconds[key])
        print(
            f"{key:>8}: {median * 1e3:8.0f} ms (best {best * 1e3:.0f})  "
            f"{rows * length / median:8,.0f} tokens/s"
        )
    ratios = [a / b for a, b in zip(seconds["PyTorch"], seconds["ours"], strict=True)]
    print(f"   ratio: {statistics.median(ratios):8.2f} x PyTorch's speed (median of the rounds')")


if __name__ == "__main__":
    main()
