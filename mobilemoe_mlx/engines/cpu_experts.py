"""Routed experts that the CPU kernel reads from the checkpoint's files when it needs them."""

from __future__ import annotations

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.cpu_kernel import structures as s
from mobilemoe_mlx.cpu_kernel.library import ExpertFiles, Library
from mobilemoe_mlx.engines.cpu_weights import expert_names, kernel_config
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tensor_names import mlx_parts

# MLX's codes are code + 8; XORed with this, two of them are two's complement (`int4.from_affine`).
_FLIP = 0x88


def expert_files(library: Library, checkpoint: Checkpoint, args: ModelArgs) -> ExpertFiles:
    """The files and places of all experts of an INT4 `checkpoint`, of either form.

    Raises UserError for a checkpoint that is not INT4, and for files that cannot be read.
    """
    layers = (s.ExpertParts * args.num_hidden_layers)()
    for index in range(args.num_hidden_layers):
        layers[index] = s.ExpertParts(*(_part(checkpoint, name) for name in expert_names(index)))
    config, _periods = kernel_config(args, library)
    return ExpertFiles(library, config, layers)


def _part(checkpoint: Checkpoint, name: str) -> s.ExpertPart:
    """Where the published tensor `name` lies."""
    flip = 0
    if name not in checkpoint.tensors:
        name, kind = next(iter(mlx_parts(name).items()))
        flip = _FLIP if kind == "codes" else 0
    if name not in checkpoint.tensors or (place := checkpoint.tensors[name].place) is None:
        raise UserError(
            f"{checkpoint.folder} has no INT4 experts in its files that could be read when they "
            "are needed: convert it with `mobilemoe convert --quantize`."
        )
    path, offset = place
    return s.ExpertPart(bytes(path), offset, flip)
