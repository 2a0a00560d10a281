"""Which checkpoint an adapter belongs to: digests of its configuration and of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.checkpoint.check import Checkpoint, open_checkpoint
from mobilemoe_mlx.checkpoint.layouts import published_name
from mobilemoe_mlx.checkpoint.tensor_file import Tensor
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.tensor_names import packed_names

_BLOCK = 1 << 24  # bytes read at a time

# Of the configuration, what changes nothing that the weights compute.
_FREE = ("max_position_embeddings", "bos_token_id", "eos_token_id", "torch_dtype", "model_type")


@dataclass(frozen=True)
class BaseDigest:
    """A base checkpoint; two are the same if both digests are, whatever the folder or layout."""

    name: str  # the folder's path, or the repository's name
    config: str  # SHA-256 of what the configuration says about the computation
    weights: str  # SHA-256 over all tensors under their published names and in published form


def base_digest(folder: str | Path, name: str | None = None) -> BaseDigest:
    """The digest of a checkpoint folder; a converted copy for mlx-lm has that of the published one.

    Reads all weights once. `name`: what people call it (default: the folder's path). Raises
    UserError for all that is wrong with the folder.
    """
    return digest_of(open_checkpoint(folder), name)


def digest_of(checkpoint: Checkpoint, name: str | None = None) -> BaseDigest:
    """The digest of an open checkpoint; see `base_digest`."""
    settings = {k: v for k, v in checkpoint.args.to_dict().items() if k not in _FREE}
    config = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    weights = hashlib.sha256()
    for tensor_name, tensor, codes in sorted(_published(checkpoint), key=lambda each: each[0]):
        weights.update(f"{tensor_name} {tensor.nbytes}\n".encode())
        for block in _blocks(tensor):
            # MLX's codes are the published ones + 8: the top bit of each nibble.
            weights.update((block ^ np.uint8(0x88) if codes else block).tobytes())
    return BaseDigest(name or str(checkpoint.folder), config, weights.hexdigest())


def check_base(adapter: Path, wanted: BaseDigest | None, base: BaseDigest) -> None:
    """Raise UserError when the adapter in `adapter` was made for another base than `base`.

    An adapter that does not say (`wanted` is None: mlx-lm's own) passes.
    """
    if wanted is None or (wanted.config, wanted.weights) == (base.config, base.weights):
        return
    what = "weights" if wanted.config == base.config else "configurations"
    raise UserError(
        f"The adapter {adapter} belongs to {wanted.name}, not to {base.name}: the {what} of the "
        "two differ. Use it with the checkpoint it was trained on."
    )


def _published(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor, bool]]:
    """(Published name, stored tensor, whether it holds codes in MLX's form) of each tensor."""
    tensors = checkpoint.tensors
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if f"{module}.scales" not in tensors:
            yield published_name(name), tensor, False
        elif leaf == "weight":
            yield packed_names(name)[0], tensor, True
        elif leaf == "scales":
            yield packed_names(f"{module}.weight")[1], tensor, False


def _blocks(tensor: Tensor) -> Iterator[np.ndarray]:
    if tensor.place is None:
        yield np.asarray(tensor.read().view(mx.uint8)).reshape(-1)
        return
    path, offset = tensor.place
    with path.open("rb") as file:
        file.seek(offset)
        left = tensor.nbytes
        while left:
            block = np.fromfile(file, np.uint8, min(left, _BLOCK))
            if not block.size:
                raise UserError(f"{path} became shorter while it was read.")
            left -= block.size
            yield block
