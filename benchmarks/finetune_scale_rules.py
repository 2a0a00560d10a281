"""Both rules of INT4 scales in QAT, from BF16 and from published INT4, on the quickstart's models.

Run: python benchmarks/finetune_scale_rules.py [--quickstart runs/quickstart] [--output
runs/finetune-scale-rules] [--set KEY=VALUE ...]. The task of benchmarks/finetune_methods.py, with
its rate. Prints for each of the four runs the held-out loss of what it starts from, of that rounded
by the rule (the run's own first loss), and after training; and of how many groups of 32 weights the
rule's first rounding changes a value that is INT4 already. A run that has a result is not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from finetune_methods import WHOLE, mobilemoe, write_data

STARTS = {"BF16": "sft", "published INT4": "qat"}
RULES = ("unclipped", "paper")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=Path("runs/finetune-scale-rules"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = parser.parse_args()
    data = write_data(options.quickstart / "corpus", options.output / "data")
    head = ("QAT from", "scale rule", "start", "rounded by the rule", "after QAT", "groups changed")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name, stage in STARTS.items():
        base = options.quickstart / "training" / stage / "model"
        for rule in RULES:
            folder = options.output / f"{stage}-{rule}"
            if not (folder / "model" / "config.json").is_file():
                settings = [f"--set={value}" for value in (*WHOLE, *options.overrides)]
                settings += [f"--set=scale_rule={rule}"]
                words = ["finetune", base, "--data", data, "--run", folder, "--method", "qat"]
                mobilemoe(*words, *settings)
            rows = (folder / "metrics.jsonl").read_text().splitlines()
            summary = json.loads(rows[-1])["summary"]
            changed = f"{changed_groups(base, rule):.1%}" if stage == "qat" else "-"
            cells = (
                name,
                rule,
                f"{loss_of(base, data):.3f}",
                f"{summary['heldout_before']:.3f}",
                f"**{summary['heldout_after']:.3f}**",
                changed,
            )
            print("| " + " | ".join(cells) + " |", flush=True)


def loss_of(base: Path, data: Path) -> float:
    """The held-out loss of a checkpoint as it is."""
    from mobilemoe_mlx.checkpoint.load_save import load
    from mobilemoe_mlx.finetune.data import open_finetune_data
    from mobilemoe_mlx.finetune.data_config import FinetuneDataConfig
    from mobilemoe_mlx.train.evaluate import heldout_loss

    model, tokenizer = load(base)
    context = min(FinetuneDataConfig.context, model.args.max_position_embeddings)
    config = FinetuneDataConfig(path=str(data), context=context)
    batches = open_finetune_data(config, tokenizer, 2).stage.heldout.batches
    return heldout_loss(model, batches, document_mask=True)


def changed_groups(base: Path, rule: Any) -> float:
    """The share of a published INT4 checkpoint's groups in which the rule changes a value."""
    from mobilemoe_mlx import int4
    from mobilemoe_mlx.adapters.fused import float_tensors
    from mobilemoe_mlx.checkpoint.check import open_checkpoint
    from mobilemoe_mlx.config import GROUP_SIZE
    from mobilemoe_mlx.int4_rounding import stored_type

    changed = groups = 0
    for name, tensor in float_tensors(open_checkpoint(base)).items():
        if stored_type(name) is None:
            weight = tensor.read()
            again = int4.dequantize(*int4.quantize(weight, rule))
            moved = (again != weight).reshape(-1, GROUP_SIZE).any(axis=-1)
            changed += int(moved.sum().item())
            groups += moved.size
    return changed / groups


if __name__ == "__main__":
    main()
