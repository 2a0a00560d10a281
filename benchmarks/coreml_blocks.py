"""What a prefill costs by the rows of an expert's block, counted in the saved program.

Run: python benchmarks/coreml_blocks.py [--preset S] [--tokens 256] [--rows 8 16 32 64 128]

Exports one decoder layer of the preset for each number of rows and adds up, over the operations of
`prefill`: the bytes of inputs and results at their declared types (what an unfused program moves),
the floating-point operations of products, and the most bytes alive at once. Nothing is timed: no
device is here, and the counts only rank the choices (mobilemoe_mlx/export/coreml/expert_blocks.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
from pathlib import Path

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.config import PRESETS
from mobilemoe_mlx.export.coreml import expert_blocks, names
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.mil.evaluator import Evaluator
from mobilemoe_mlx.mil.program import Constant, Function, TensorType, read_package


def moved_bytes(function: Function) -> int:
    """Bytes that the operations of a function read and write; constants where they are used."""
    types = {name: t for o in function.operations for name, t in o.outputs} | function.tensors
    total = 0
    for operation in function.operations:
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            continue
        arguments = [a for given in operation.inputs.values() for a in given]
        read = [a.type if isinstance(a, Constant) else types.get(a) for a in arguments]
        if operation.type == "gather":  # reads what it gives, not the whole table
            read = []
        written = [t for _, t in operation.outputs]
        total += sum(t.nbytes for t in (*read, *written) if isinstance(t, TensorType))
    return total


def product_operations(function: Function) -> int:
    """Multiplications and additions of `matmul` and `linear`."""
    types = {name: t for o in function.operations for name, t in o.outputs} | function.tensors
    total = 0
    for operation in function.operations:
        if operation.type in ("matmul", "linear"):
            (x,) = operation.inputs["x"]
            assert isinstance(x, str)
            ((_, result),) = operation.outputs
            total += 2 * math.prod(result.shape) * types[x].shape[-1]
    return total


def main() -> None:
    """Export, count and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="S", choices=PRESETS)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rows", type=int, nargs="+", default=(8, 16, 32, 64, 128))
    options = parser.parse_args()
    args = dataclasses.replace(
        PRESETS[options.preset],
        num_hidden_layers=1,
        no_rope_layers=(),
        layer_types=(),
        vocab_size=256,  # so that the head counts for little
        bos_token_id=0,
        eos_token_id=(1,),
    )
    print("| rows | blocks | GB moved | GFLOP of products | peak MB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        checkpoint, package = Path(work) / "checkpoint", Path(work) / "layer.mlpackage"
        write_random_checkpoint(checkpoint, args, quantized=True)
        for rows in options.rows:
            expert_blocks.BLOCK_ROWS = rows
            export = ExportOptions(context=2048, prefill_block=options.tokens)
            export_coreml(checkpoint, package, export, force=True)
            saved = read_package(package)
            prefill = saved.functions[names.PREFILL]
            blocks = expert_blocks.most_blocks(
                options.tokens, args.num_experts_per_tok, args.num_local_experts, rows
            )
            print(
                f"| {rows} | {blocks} | {moved_bytes(prefill) / 1e9:.2f} | "
                f"{product_operations(prefill) / 1e9:.1f} | "
                f"{Evaluator(saved).peak_bytes(names.PREFILL) / 1e6:.0f} |"
            )


if __name__ == "__main__":
    main()
