"""Golden inputs and outputs of the custom layers, small enough to be read by any implementation.

coreml/README.md describes the files. Every number comes from SHAKE-256, so that they are the same
on every machine; outputs are those of reference.py. The command that writes them is
write_golden.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.checkpoint.tensor_file import from_array, write_file
from mobilemoe_mlx.config import NORMALIZE_EPS, ModelArgs, RopeScaling
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.custom import reference as reference
from mobilemoe_mlx.export.coreml.custom.contract import Entry, LayerClass
from mobilemoe_mlx.model import rope_periods

Arrays = dict[str, np.ndarray]
Wish = Callable[[list[int]], bool]  # of the experts that a token selects

HIDDEN, GROUP, VOCABULARY = 64, 32, 96
CONTEXT = 24  # of the attention files

# Experts of the file experts.safetensors: one that every token selects, one that none does, and two
# with a router of zeros and one bias, whose scores are therefore equal in any order of summation.
ALWAYS, NEVER, TWINS = 3, 5, (2, 6)

# Least gap between a token's selected scores and the next, ties apart, so that a router that reads
# half-precision inputs decides alike.
MARGIN = 0.02

# Far from the published 1e-5, which is lost beside a mean square near 1, and from each other.
NORM_EPS, QK_NORM_EPS = 0.25, 0.125

# Below 6.1e-5, the smallest normal float16: it must not be taken for 0.
SUBNORMAL_SCALE = 5e-5


@dataclass(frozen=True)
class GoldenFile:
    """One file: a layer with its weights, and cases of inputs and outputs."""

    kind: str  # a class of the contract; "unpack" or "rotate" for arithmetic alone
    parameters: Mapping[str, Any]
    tensors: Arrays
    cases: Mapping[str, str] = field(default_factory=dict)  # name -> what it is for


def golden_files() -> dict[str, GoldenFile]:
    """Every file by its name, without suffix."""
    return {
        "unpack": _unpack(),
        "rotate": _rotate(),
        "embedding": _embedding(),
        "attention": _attention("attention", heads=6, kv_heads=2, layers=3, layer=1),
        "attention-plain": _attention("attention-plain", heads=4, kv_heads=4, layers=1, layer=0),
        "experts": _experts(),
        "experts-plain": _experts_plain(),
        "cache-rows": _cache_rows(),
        "head-last": _head("last"),
        "head-all": _head("all"),
    }


def write_golden(folder: Path) -> None:
    """Write every file into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in golden_files().items():
        metadata = {
            "contract": str(contract.VERSION),
            "class": file.kind,
            "parameters": json.dumps(file.parameters),
            "cases": json.dumps(file.cases),
        }
        tensors = {n: from_array(mx.array(array)) for n, array in file.tensors.items()}
        write_file(folder / f"{name}.safetensors", tensors, metadata)


def _unpack() -> GoldenFile:
    codes = np.arange(256, dtype=np.uint8).reshape(4, 64)
    scales = _floats("unpack", (4, 4), 0.001, 0.1).astype(np.float16)
    scales[0, 0], scales[1, 1], scales[3, 3] = 1, 0, SUBNORMAL_SCALE
    values = reference.dequantize(codes, scales).astype(np.float32)
    return GoldenFile("unpack", {}, {"codes": codes, "scales": scales, "values": values})


def _rotate() -> GoldenFile:
    periods = rope_periods(_args(64, RopeScaling()))  # those of the published models
    positions = np.array([0, 1, 255, 2047, 8191], np.float32)
    angles = positions.astype(np.float64)[:, None] / periods
    x = _floats("rotate", (len(positions), 1, 64), -2, 2)
    tensors = {
        "periods": periods,
        "positions": positions,
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "x": x,
        "rotated": reference.rotate(x, angles).astype(np.float32),
    }
    return GoldenFile("rotate", {}, tensors)


def _embedding() -> GoldenFile:
    kind = contract.EMBEDDING
    weights, parameters = _vocabulary()
    cases = {"decode": "one token, the last id", "block": "the first id, the last, one twice"}
    tokens = {"decode": [VOCABULARY - 1], "block": [0, VOCABULARY - 1, 17, 17, 64]}
    tensors = _named(kind, weights)
    for case, ids in tokens.items():
        array = np.array(ids, np.float32)
        out = reference.embedding(parameters, _raw(weights), array)
        tensors |= {f"{case}.inputs.tokens": array, f"{case}.outputs.residual": out}
    return GoldenFile(kind.name, parameters, tensors, cases)


def _vocabulary() -> tuple[Arrays, dict[str, Any]]:
    parameters: dict[str, Any] = {
        "version": contract.VERSION,
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "group_size": GROUP,
    }
    weights = _weights("table", contract.EMBEDDING, parameters)
    key = hashlib.sha256(b"".join(array.tobytes() for array in weights.values()))
    return weights, {**parameters, "table": key.hexdigest()}


def _attention(name: str, *, heads: int, kv_heads: int, layers: int, layer: int) -> GoldenFile:
    kind, width = contract.ATTENTION, 16
    grouped = heads > kv_heads
    parameters = {
        "version": contract.VERSION,
        "layer": layer,
        "layers": layers,
        "hidden_size": HIDDEN,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": width,
        "context": CONTEXT,
        "group_size": GROUP,
        "norm_eps": NORM_EPS,
        "qk_norm": grouped,
        "qk_norm_eps": QK_NORM_EPS,
        "score_scale": width**-0.5,
    }
    weights = _weights(name, kind, parameters)
    weights["periods"] = rope_periods(_args(width, RopeScaling() if grouped else None))
    cache = contract.shape(kind.inputs["key_cache"], parameters)
    # Rows from the position on, and other layers' rows, are leftovers that must not be read.
    caches = {n: _floats(f"{name}/{n}", cache, -1.7, 1.7) for n in ("key_cache", "value_cache")}
    cases = {
        "first": (1, 0, "one token, nothing cached"),
        "decode": (1, 9, "one token after nine"),
        "prompt": (5, 0, "a block, nothing cached"),
        "block": (5, 7, "a block after seven tokens"),
        "end": (1, CONTEXT - 1, "the last position of the context"),
        "end-block": (5, CONTEXT - 5, "a block that ends with the context"),
    }
    tensors = _named(kind, weights) | {f"all.inputs.{n}": array for n, array in caches.items()}
    for case, (count, position, _) in cases.items():
        inputs = {
            "residual": _floats(f"{name}/{case}", (count, HIDDEN), -2, 2),
            "position": np.array([position], np.float32),
        }
        results = reference.attention(parameters, _raw(weights), *inputs.values(), *caches.values())
        outputs = dict(zip(kind.outputs, results, strict=True))
        tensors |= {f"{case}.inputs.{n}": array for n, array in inputs.items()}
        tensors |= {f"{case}.outputs.{n}": array for n, array in outputs.items()}
    return GoldenFile(kind.name, parameters, tensors, {n: text for n, (*_, text) in cases.items()})


def _experts_parameters(**changes: Any) -> dict[str, Any]:
    return {
        "version": contract.VERSION,
        "layer": 1,
        "hidden_size": HIDDEN,
        "expert_width": 32,
        "shared_width": 96,
        "experts": 7,
        "experts_per_token": 3,
        "group_size": GROUP,
        "norm_eps": NORM_EPS,
        "normalize": True,
        "normalize_eps": NORMALIZE_EPS,
        "weight_scale": 2.5,
        **changes,
    }


def _experts() -> GoldenFile:
    parameters = _experts_parameters()
    weights = _weights("experts", contract.EXPERTS, parameters)
    for twin in TWINS:
        weights["router"][twin], weights["expert_bias"][twin] = 0, 0.25
    weights["expert_bias"][ALWAYS], weights["expert_bias"][NEVER] = 1.5, -1.5

    def one_twin(selected: list[int]) -> bool:
        return TWINS[0] in selected and TWINS[1] not in selected

    def both_twins(selected: list[int]) -> bool:
        return selected[1:] == list(TWINS)

    def no_twin(selected: list[int]) -> bool:
        return not set(TWINS) & set(selected)

    cases: dict[str, tuple[str, list[Wish]]] = {
        "decode": ("one token", [no_twin]),
        "block": (
            f"a block; every token selects expert {ALWAYS}, none expert {NEVER}",
            [no_twin, one_twin, no_twin, both_twins, no_twin],
        ),
        "tie": (
            f"experts {TWINS[0]} and {TWINS[1]} have equal scores, and one of them is selected",
            [one_twin] * 3,
        ),
        "tie-both": (
            f"experts {TWINS[0]} and {TWINS[1]} have equal scores, and both are selected",
            [both_twins],
        ),
    }
    return _experts_file("experts", parameters, weights, cases)


def _experts_plain() -> GoldenFile:
    parameters = _experts_parameters(
        layer=0, shared_width=64, experts=4, experts_per_token=1, normalize=False, weight_scale=1.0
    )
    weights = _weights("experts-plain", contract.EXPERTS, parameters)
    cases = {"block": ("one expert a token, weights not normalised", [lambda selected: True] * 4)}
    return _experts_file("experts-plain", parameters, weights, cases)


def _experts_file(
    name: str,
    parameters: Mapping[str, Any],
    weights: Arrays,
    cases: Mapping[str, tuple[str, list[Wish]]],
) -> GoldenFile:
    """`cases`: name -> (what it is for, for each of its tokens what it must select)."""
    kind, raw = contract.EXPERTS, _raw(weights)
    tensors = _named(kind, weights)
    for case, (_, wanted) in cases.items():
        tokens = [
            _token(f"{name}/{case}/{index}", parameters, raw, wish)
            for index, wish in enumerate(wanted)
        ]
        residual = np.concatenate(tokens)
        result = reference.experts(parameters, raw, residual)
        tensors |= {
            f"{case}.inputs.residual": residual,
            f"{case}.outputs.residual": result.residual,
            f"{case}.router.scores": result.scores,
            f"{case}.router.experts": result.experts.astype(np.uint32),
            f"{case}.router.weights": result.expert_weights,
        }
    return GoldenFile(kind.name, parameters, tensors, {n: text for n, (text, _) in cases.items()})


def _token(
    label: str,
    parameters: Mapping[str, Any],
    weights: list[np.ndarray],
    wanted: Wish,
) -> np.ndarray:
    """The first residual of the series `label` that selects what is `wanted`, by a clear margin."""
    for number in range(1000):
        residual = _floats(f"{label}/{number}", (1, HIDDEN), -2, 2)
        result = reference.experts(parameters, weights, residual)
        ranked = np.sort(result.scores[0])[::-1][: parameters["experts_per_token"] + 1]
        gaps = -np.diff(ranked)
        if wanted(result.experts[0].tolist()) and np.all((gaps >= MARGIN) | (gaps == 0)):
            return residual
    raise AssertionError(f"no token of {label} selects what is wanted")


def _cache_rows() -> GoldenFile:
    kind = contract.CACHE_ROWS
    parameters = {"version": contract.VERSION, "layers": 3, "kv_heads": 2, "head_dim": 4}
    tensors: Arrays = {}
    cases = {"decode": "one token", "block": "a block"}
    for case, count in {"decode": 1, "block": 5}.items():
        rows = [_floats(f"cache-rows/{case}/{i}", (2, count, 4), -1, 1) for i in range(3)]
        tensors |= {f"{case}.inputs.rows_{index}": array for index, array in enumerate(rows)}
        tensors[f"{case}.outputs.stacked"] = reference.cache_rows(rows)
    return GoldenFile(kind.name, parameters, tensors, cases)


def _head(logits: str) -> GoldenFile:
    kind = contract.HEAD
    table, vocabulary = _vocabulary()
    parameters = {**vocabulary, "norm_eps": NORM_EPS, "logits": logits}
    weights = _weights("head", kind, parameters)
    tensors = _named(kind, weights)
    tensors |= {f"table.{i}.{n}": array for i, (n, array) in enumerate(table.items())}
    cases = {"decode": "one token", "block": "a block"}
    for case, count in {"decode": 1, "block": 5}.items():
        residual = _floats(f"head/{case}", (count, HIDDEN), -2, 2)
        out = reference.head(parameters, _raw(weights), _raw(table), residual)
        tensors |= {f"{case}.inputs.residual": residual, f"{case}.outputs.logits": out}
    return GoldenFile(kind.name, parameters, tensors, cases)


def _weights(label: str, kind: LayerClass, parameters: Mapping[str, Any]) -> Arrays:
    """Every entry of a layer, of a size that keeps activations near 1; in the contract's order."""
    return {
        entry.name: _weight(f"{label}/{entry.name}", entry, parameters) for entry in kind.entries
    }


def _weight(label: str, entry: Entry, parameters: Mapping[str, Any]) -> np.ndarray:
    shape = contract.shape(entry.shape, parameters)
    if entry.dtype == "uint8":
        raw = hashlib.shake_256(label.encode()).digest(math.prod(shape))
        return np.frombuffer(raw, np.uint8).reshape(shape)
    if entry.dtype == "float16":
        scales = _floats(label, shape, 0.01, 0.04).astype(np.float16)
        scales.reshape(-1)[:2] = 0, SUBNORMAL_SCALE
        return scales
    low, high = {"norm": (0.5, 1.5), "router": (-0.3, 0.3), "expert_bias": (-0.1, 0.1)}.get(
        entry.name, (1, 1)
    )
    return _floats(label, shape, low, high)


def _named(kind: LayerClass, weights: Arrays) -> Arrays:
    names = [entry.name for entry in kind.entries]
    return {f"weights.{index}.{name}": weights[name] for index, name in enumerate(names)}


def _raw(weights: Arrays) -> list[np.ndarray]:
    """The entries as an app gets them: bytes."""
    return [np.frombuffer(array.tobytes(), np.uint8) for array in weights.values()]


def _floats(label: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """float32 values evenly spread from `low` to `high`, in steps of 1/65536 of the range."""
    raw = hashlib.shake_256(label.encode()).digest(2 * math.prod(shape))
    steps = np.frombuffer(raw, "<u2").astype(np.float64).reshape(shape)
    return (low + (high - low) * steps / 65536).astype(np.float32)


def _args(head_dim: int, scaling: RopeScaling | None) -> ModelArgs:
    """A model with this rotation; its other sizes play no part."""
    return ModelArgs(
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        intermediate_size_mlp=32,
        head_dim=head_dim,
        rope_scaling=scaling,
    )
