"""What a Core ML export's manifest must say, read from the saved package and the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import INT4_QUANTIZATION
from mobilemoe_mlx.export.manifest import ListedFile


class _Package(Protocol):
    """What a package of either form says of itself."""

    path: Path
    facts: dict[str, Any]
    weight_suffixes: tuple[str, ...]  # of the files that hold its weights

    def functions(self) -> dict[str, Any]: ...

    def cache_bytes(self) -> int: ...


def manifest_facts(
    saved: _Package, checkpoint: Checkpoint, listed: Mapping[str, ListedFile]
) -> dict[str, Any]:
    """Name -> value as JSON holds it, of everything but the files; sizes are in bytes.

    `listed`: the files that the manifest lists, of which `sizes` has sums.
    """
    inside = [file.nbytes for name, file in listed.items() if name.startswith(saved.path.name)]
    weights = [file.nbytes for name, file in listed.items() if name.endswith(saved.weight_suffixes)]
    facts = {
        **saved.facts,
        "package": saved.path.name,
        "quantization": INT4_QUANTIZATION,
        "tokens": {
            "bos": checkpoint.args.bos_token_id,
            "eos": list(checkpoint.end_token_ids()),
        },
        "functions": saved.functions(),
        "sizes": {
            "package": sum(inside),
            "weights": sum(weights),
            "checkpoint_weights": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
            "key_value_cache": saved.cache_bytes(),
        },
    }
    content: dict[str, Any] = json.loads(json.dumps(facts))  # tuples as the file holds them
    return content
