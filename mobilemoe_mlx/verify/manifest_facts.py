"""What an export's manifest must say, read from the saved package and the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import INT4_QUANTIZATION
from mobilemoe_mlx.export.manifest import ListedFile
from mobilemoe_mlx.verify.saved_export import SavedExport


def manifest_facts(
    saved: SavedExport, checkpoint: Checkpoint, listed: Mapping[str, ListedFile]
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
