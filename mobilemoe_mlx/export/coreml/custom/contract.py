"""The custom-layer contract as data: classes, their parameters, weights, inputs and outputs.

coreml/README.md says the same in words and is what implementers work from; a test compares the two.
The exporter writes by these tables and `mobilemoe verify` reads by them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

VERSION = 1  # parameter `version` of every layer

# Exact array shapes, all that the model needs of Core ML besides custom layers, came with these.
SPECIFICATION_VERSION = 4
OLDEST_SYSTEM = "iOS13"

# Field of CustomLayerParamValue without its suffix "Value".
ParameterKind = Literal["int", "long", "double", "bool", "string"]
Shape = tuple[str, ...]  # each size a product of parameters and numbers: "2 * expert_width / 32"

_ITEM_BYTES = {"uint8": 1, "float16": 2, "float32": 4}

# Parameters of a layer whose weights lie in a side file; each entry adds ENTRY_offset, ENTRY_bytes.
SIDE_FILE_PARAMETERS: dict[str, ParameterKind] = {
    "weights_file": "string",
    "weights_bytes": "long",
    "weights_sha256": "string",
}

# Of every entry in a side file, bytes: a memory page of iPhones and Macs, so that it can be mapped.
SIDE_FILE_ALIGNMENT = 16384

# Sizes that are no parameters: tokens of the call; rows of logits, 1 for logits "last", else T.
TOKENS, LOGIT_ROWS = "T", "R"


@dataclass(frozen=True)
class Entry:
    """One entry of a layer's `weights`: row-major, little endian."""

    name: str
    dtype: Literal["uint8", "float16", "float32"]
    shape: Shape
    tensor: str  # of the checkpoint, without "model." ({layer}: index); "" when it is computed

    def tensor_name(self, parameters: Mapping[str, object]) -> str:
        """The published name of the tensor of a layer with these parameters."""
        return f"model.{self.tensor.format(layer=parameters.get('layer'))}"


@dataclass(frozen=True)
class LayerClass:
    """One class that the app supplies."""

    name: str
    parameters: Mapping[str, ParameterKind]
    entries: tuple[Entry, ...]
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    one_input_per_layer: bool = False  # its only input comes `layers` times


def side_file_parameters(kind: LayerClass) -> dict[str, ParameterKind]:
    """What a layer's parameters have besides `kind.parameters` when a side file has its weights."""
    places = (f"{entry.name}_{what}" for entry in kind.entries for what in ("offset", "bytes"))
    return {**SIDE_FILE_PARAMETERS, **dict.fromkeys(places, "long")} if kind.entries else {}


def size(dimension: str, parameters: Mapping[str, object], tokens: int = 0) -> int:
    """The number that one dimension of a shape stands for.

    Raises ValueError where it does not come out whole.
    """
    product, _, divisor = dimension.partition(" / ")
    number = 1
    for factor in product.split(" * "):
        number *= _factor(factor, parameters, tokens)
    by = _factor(divisor, parameters, tokens) if divisor else 1
    if number % by:
        raise ValueError(f"{dimension} is {number} / {by}, no whole number")
    return number // by


def shape(dimensions: Shape, parameters: Mapping[str, object], tokens: int = 0) -> tuple[int, ...]:
    """A shape in numbers."""
    return tuple(size(dimension, parameters, tokens) for dimension in dimensions)


def nbytes(entry: Entry, parameters: Mapping[str, object]) -> int:
    """The bytes of an entry."""
    return math.prod(shape(entry.shape, parameters)) * _ITEM_BYTES[entry.dtype]


def _factor(text: str, parameters: Mapping[str, object], tokens: int) -> int:
    if text.isdigit():
        return int(text)
    if text == TOKENS or (text == LOGIT_ROWS and parameters["logits"] == "all"):
        return tokens
    value = 1 if text == LOGIT_ROWS else parameters[text]
    assert isinstance(value, int)
    return value


def _linear(name: str, rows: str, columns: str, module: str) -> tuple[Entry, Entry]:
    """Codes and scales of a linear layer [rows, columns], grouped along *columns*, its inputs."""
    return (
        Entry(f"{name}_codes", "uint8", (rows, f"{columns} / 2"), f"{module}.qweight"),
        Entry(
            f"{name}_scales", "float16", (rows, f"{columns} / group_size"), f"{module}.weight_scale"
        ),
    )


def _experts(name: str, rows: str, columns: str) -> tuple[Entry, Entry]:
    """Codes and scales of all experts' [rows, columns], grouped along *columns*, their outputs."""
    tensor = f"{_MOE}.experts.{name}"
    return (
        Entry(f"{name}_codes", "uint8", ("experts", rows, f"{columns} / 2"), f"{tensor}_qweight"),
        Entry(
            f"{name}_scales",
            "float16",
            ("experts", rows, f"{columns} / group_size"),
            f"{tensor}_scale",
        ),
    )


_LAYER = "layers.{layer}"
_MOE = f"{_LAYER}.feed_forward"
_SHARED = f"{_MOE}.shared_expert"
_RESIDUAL: Mapping[str, Shape] = {"residual": (TOKENS, "hidden_size")}
_CACHE: Shape = ("layers", "kv_heads", "context", "head_dim")
_ROWS: Shape = ("kv_heads", TOKENS, "head_dim")

EMBEDDING = LayerClass(
    "MobileMoEEmbedding",
    parameters={
        "version": "int",
        "vocab_size": "int",
        "hidden_size": "int",
        "group_size": "int",
        "table": "string",
    },
    entries=_linear("table", "vocab_size", "hidden_size", "embed_tokens"),
    inputs={"tokens": (TOKENS,)},
    outputs=_RESIDUAL,
)

ATTENTION = LayerClass(
    "MobileMoEAttention",
    parameters={
        "version": "int",
        "layer": "int",
        "layers": "int",
        "hidden_size": "int",
        "heads": "int",
        "kv_heads": "int",
        "head_dim": "int",
        "context": "int",
        "group_size": "int",
        "norm_eps": "double",
        "qk_norm": "bool",
        "qk_norm_eps": "double",
        "score_scale": "double",
    },
    entries=(
        Entry("norm", "float32", ("hidden_size",), f"{_LAYER}.input_layernorm.weight"),
        *_linear("q", "heads * head_dim", "hidden_size", f"{_LAYER}.self_attn.q_proj"),
        *_linear("k", "kv_heads * head_dim", "hidden_size", f"{_LAYER}.self_attn.k_proj"),
        *_linear("v", "kv_heads * head_dim", "hidden_size", f"{_LAYER}.self_attn.v_proj"),
        *_linear("o", "hidden_size", "heads * head_dim", f"{_LAYER}.self_attn.o_proj"),
        Entry("periods", "float32", ("head_dim / 2",), tensor=""),
    ),
    inputs={**_RESIDUAL, "position": ("1",), "key_cache": _CACHE, "value_cache": _CACHE},
    outputs={**_RESIDUAL, "new_keys": _ROWS, "new_values": _ROWS},
)

EXPERTS = LayerClass(
    "MobileMoEExperts",
    parameters={
        "version": "int",
        "layer": "int",
        "hidden_size": "int",
        "expert_width": "int",
        "shared_width": "int",
        "experts": "int",
        "experts_per_token": "int",
        "group_size": "int",
        "norm_eps": "double",
        "normalize": "bool",
        "normalize_eps": "double",
        "weight_scale": "double",
    },
    entries=(
        Entry("norm", "float32", ("hidden_size",), f"{_LAYER}.post_attention_layernorm.weight"),
        Entry("router", "float32", ("experts", "hidden_size"), f"{_MOE}.router.weight"),
        Entry("expert_bias", "float32", ("experts",), f"{_MOE}.expert_bias"),
        *_experts("gate_up", "hidden_size", "2 * expert_width"),
        *_experts("down", "expert_width", "hidden_size"),
        *_linear("shared_gate", "shared_width", "hidden_size", f"{_SHARED}.gate_proj"),
        *_linear("shared_up", "shared_width", "hidden_size", f"{_SHARED}.up_proj"),
        *_linear("shared_down", "hidden_size", "shared_width", f"{_SHARED}.down_proj"),
    ),
    inputs=_RESIDUAL,
    outputs=_RESIDUAL,
)

CACHE_ROWS = LayerClass(
    "MobileMoECacheRows",
    parameters={"version": "int", "layers": "int", "kv_heads": "int", "head_dim": "int"},
    entries=(),
    inputs={"rows": _ROWS},
    outputs={"stacked": ("layers", *_ROWS)},
    one_input_per_layer=True,
)

HEAD = LayerClass(
    "MobileMoEHead",
    parameters={
        "version": "int",
        "vocab_size": "int",
        "hidden_size": "int",
        "group_size": "int",
        "norm_eps": "double",
        "logits": "string",
        "table": "string",
    },
    entries=(Entry("norm", "float32", ("hidden_size",), "norm.weight"),),
    inputs=_RESIDUAL,
    outputs={"logits": (LOGIT_ROWS, "vocab_size")},
)

CLASSES = {c.name: c for c in (EMBEDDING, ATTENTION, EXPERTS, CACHE_ROWS, HEAD)}
