"""Which tensors a checkpoint holds, under which names, shapes and types, in each of three layouts.

FLOAT     the published BF16 checkpoints (Base, SFT); experts also with a trailing `.weight`
INT4      the published packed checkpoints (QAT): qweight, weight_scale
MLX_INT4  the same codes and scales in MLX's affine form, written for mlx-lm's own commands
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import mlx.core as mx

from mobilemoe_mlx import int4
from mobilemoe_mlx.checkpoint.tensor_file import FORMAT_NAMES, Tensor
from mobilemoe_mlx.config import GROUP_SIZE, ModelArgs, ScaleRule
from mobilemoe_mlx.int4_rounding import rounding, stored_type
from mobilemoe_mlx.tensor_names import is_expert_matrix, mlx_parts, packed_names


class Layout(enum.Enum):
    """How a checkpoint stores its weights; the value is what messages call it."""

    FLOAT = "BF16"
    INT4 = "packed INT4"
    MLX_INT4 = "INT4 in MLX's form"


class Expected(NamedTuple):
    """What a tensor must be."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]  # any of these, the published one first


def parameter_shapes(args: ModelArgs) -> dict[str, tuple[int, ...]]:
    """Name in `Model` -> shape of every parameter of the float model (docs/model.md, "Tensors")."""
    d, width, shared = args.hidden_size, args.intermediate_size, args.intermediate_size_mlp
    heads, kv_heads, experts = args.query_dim, args.key_value_dim, args.num_local_experts
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (args.vocab_size, d)}
    for n in range(args.num_hidden_layers):
        layer = {
            "input_layernorm.weight": (d,),
            "self_attn.q_proj.weight": (heads, d),
            "self_attn.k_proj.weight": (kv_heads, d),
            "self_attn.v_proj.weight": (kv_heads, d),
            "self_attn.o_proj.weight": (d, heads),
            "post_attention_layernorm.weight": (d,),
        }
        if experts:
            layer |= {
                "feed_forward.router.weight": (experts, d),
                "feed_forward.expert_bias": (experts,),
                "feed_forward.experts.gate_up_proj.weight": (experts, d, 2 * width),
                "feed_forward.experts.down_proj.weight": (experts, width, d),
            }
        if shared:
            layer |= {
                "feed_forward.shared_expert.gate_proj.weight": (shared, d),
                "feed_forward.shared_expert.up_proj.weight": (shared, d),
                "feed_forward.shared_expert.down_proj.weight": (d, shared),
            }
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (d,)
    return shapes


def layout_of(names: Iterable[str]) -> Layout:
    """The layout that tensor names belong to."""
    leaves = {name.rpartition(".")[2] for name in names}
    if any(leaf.endswith("qweight") for leaf in leaves):
        return Layout.INT4
    return Layout.MLX_INT4 if "scales" in leaves else Layout.FLOAT


def expected_tensors(args: ModelArgs, layout: Layout) -> dict[str, Expected]:
    """Tensor name -> what it must be, under canonical names (`published_name`)."""
    out = {}
    for name, shape in parameter_shapes(args).items():
        if layout is Layout.FLOAT:
            out[published_name(name)] = Expected(shape, ("BF16", "F32"))
        elif (dtype := stored_type(name)) is not None:
            both = ("BF16", "F32") if dtype == mx.bfloat16 else ("F32",)
            out[name] = Expected(shape, both)
        else:
            rows, columns = shape[:-1], shape[-1]
            scale = Expected((*rows, columns // GROUP_SIZE), ("F16",))
            module = name.removesuffix(".weight")
            if layout is Layout.INT4:
                qweight, weight_scale = packed_names(name)
                out[qweight] = Expected((*rows, columns // 2), ("U8",))
                out[weight_scale] = scale
            else:
                out[f"{module}.weight"] = Expected((*rows, columns // 8), ("U32",))
                out[f"{module}.scales"] = out[f"{module}.biases"] = scale
    return out


def published_name(name: str) -> str:
    """A float tensor's published name: expert matrices lose their trailing `.weight`."""
    module = name.removesuffix(".weight")
    return module if is_expert_matrix(module) else name


def module_name(name: str) -> str:
    """The inverse of `published_name`: the parameter's name in `Model`."""
    return f"{name}.weight" if is_expert_matrix(name) else name


def to_mlx(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of any layout under the names and in the forms of `Model`'s parameters; exact."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for target, part in mlx_parts(name).items():
            if part == "codes":
                words = (*tensor.shape[:-1], tensor.shape[-1] // 4)
                out[target] = Tensor("U32", words, _computed(int4.affine_codes, tensor))
            elif part == "biases":
                out[target] = Tensor(
                    tensor.dtype, tensor.shape, _computed(int4.affine_biases, tensor)
                )
            else:
                out[target] = tensor
    return out


def to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_mlx`: `Model`'s names and forms to the published ones; exact."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if f"{module}.scales" not in tensors:
            out[published_name(name)] = tensor
        elif leaf == "weight":
            qweight, weight_scale = packed_names(name)
            columns = (*tensor.shape[:-1], tensor.shape[-1] * 4)
            out[qweight] = Tensor("U8", columns, _computed(_packed_codes, tensor))
            out[weight_scale] = tensors[f"{module}.scales"]
    return out


def rounded(tensors: Mapping[str, Tensor], rule: ScaleRule = "unclipped") -> dict[str, Tensor]:
    """FLOAT tensors rounded to nearest as published INT4 tensors, a block of rows at a time.

    `rule`: of the scales; see `int4.quantize`. The values are those of
    `int4_rounding.quantize_parameters`. Reading raises UserError for values beyond the reach of
    float16 scales.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = module_name(name)
        if (dtype := stored_type(name)) is not None:
            out[name] = cast(tensor, FORMAT_NAMES[dtype])
            continue
        rows, columns = tensor.shape[:-1], tensor.shape[-1]
        qweight, weight_scale = packed_names(name)
        codes, scale = (_computed(_by_rows(f), tensor) for f in rounding(name, rule))
        out[qweight] = Tensor("U8", (*rows, columns // 2), codes)
        out[weight_scale] = Tensor("F16", (*rows, columns // GROUP_SIZE), scale)
    return out


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """A BF16, F32 or F16 tensor in another of these types; BF16 -> F32 -> BF16 keeps every bit."""
    if tensor.dtype == dtype:
        return tensor
    if (tensor.dtype, dtype) == ("BF16", "F32"):
        return Tensor(dtype, tensor.shape, _computed(_widen, tensor))
    if (tensor.dtype, dtype) == ("F32", "BF16"):
        return Tensor(dtype, tensor.shape, _computed(_narrow, tensor))
    raise ValueError(f"no cast from {tensor.dtype} to {dtype}")


def _computed(function: Callable[[mx.array], mx.array], source: Tensor) -> Callable[[], mx.array]:
    def read() -> mx.array:
        result = function(source.read())
        mx.eval(result)  # now, so that the source is freed
        return result

    return read


def _packed_codes(weight: mx.array) -> mx.array:
    return int4.from_affine(weight, mx.zeros((1,), mx.float16)).qweight


def _widen(x: mx.array) -> mx.array:
    # Integers: no device flushes a subnormal or quiets a NaN.
    return (x.view(mx.uint16).astype(mx.uint32) << mx.array(16, mx.uint32)).view(mx.float32)


def _narrow(x: mx.array) -> mx.array:
    # Round to nearest even on the bits: exact, NaN payloads included, for what came from bfloat16.
    bits = x.view(mx.uint32)
    half, sixteen = mx.array(0x7FFF, mx.uint32), mx.array(16, mx.uint32)
    high = bits >> sixteen
    nearest = (bits + half + (high & mx.array(1, mx.uint32))) >> sixteen
    is_nan = (bits & mx.array(0x7FFFFFFF, mx.uint32)) > mx.array(0x7F800000, mx.uint32)
    has_low = (bits & mx.array(0xFFFF, mx.uint32)) > 0
    quiet = high | mx.array(0x40, mx.uint32)  # a payload in the low bits alone must stay a NaN
    return mx.where(is_nan & has_low, quiet, nearest).astype(mx.uint16).view(mx.bfloat16)


_BLOCK_ELEMENTS = 4_000_000  # rows rounded together: about 100 MB of float32 intermediates


def _by_rows(function: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
    def apply(x: mx.array) -> mx.array:
        step = max(1, _BLOCK_ELEMENTS // max(1, x[0].size))
        blocks = []
        for start in range(0, x.shape[0], step):
            blocks.append(function(x[start : start + step]))
            mx.eval(blocks[-1])
        return mx.concatenate(blocks)

    return apply
