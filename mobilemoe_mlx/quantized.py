"""INT4 models: of modules, rounded from a trained model, and the straight-through form for QAT."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from mobilemoe_mlx import int4
from mobilemoe_mlx.config import GROUP_SIZE, ModelArgs, ScaleRule
from mobilemoe_mlx.experts import ExpertLinear, QuantizedExpertLinear
from mobilemoe_mlx.int4_rounding import as_float, as_quantized, quantize_parameters, stored_type
from mobilemoe_mlx.linux_cpu.int4_product import int4_product, is_faster
from mobilemoe_mlx.lora.low_rank import float_matrix
from mobilemoe_mlx.model import Model


class Int4Linear(nn.QuantizedLinear):
    """MLX's quantised linear layer, with the faster product of a Linux CPU for many rows."""

    def __call__(self, x: mx.array) -> mx.array:
        if is_faster(x):
            return int4_product(x, lambda: float_matrix(self), _times_transposed)
        return super().__call__(x)


class Int4Embedding(nn.QuantizedEmbedding):
    """Quantised embedding that dequantises its rows exactly, in float32, then casts them.

    (MLX's own computes code x scale + bias in the scales' float16, which rounds.)
    """

    dtype: mx.Dtype = mx.float32  # the compute type of the model

    def __call__(self, x: mx.array) -> mx.array:
        rows = mx.dequantize(
            self.weight[x],
            self.scales[x].astype(mx.float32),
            self.biases[x].astype(mx.float32),
            group_size=self.group_size,
            bits=self.bits,
        )
        return rows.astype(self.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        if is_faster(x):
            return int4_product(x, lambda: float_matrix(self), _times_transposed)
        return super().as_linear(x)


def _times_transposed(x: mx.array, weight: mx.array) -> mx.array:
    return x @ weight.T


def int4_model(args: ModelArgs, dtype: mx.Dtype = mx.float32) -> Model:
    """A model with INT4 modules whose weights are yet to be loaded (nothing is computed).

    `dtype`: the type of activations, float32 or float16. bfloat16 raises ValueError, since it
    cannot hold the float16 scales.
    """
    if dtype not in (mx.float32, mx.float16):
        raise ValueError(f"INT4 models compute in float32 or float16, not {dtype}")
    model = Model(args)
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    nn.quantize(model, group_size=GROUP_SIZE, bits=4)
    faster = [(n, Int4Linear(*m.weight.shape[::-1], False, GROUP_SIZE, 4)) for n, m in linears]
    model.update_modules(tree_unflatten(faster))
    embedding = Int4Embedding(args.vocab_size, args.hidden_size, GROUP_SIZE, 4)
    embedding.dtype = dtype
    model.model.embed_tokens = embedding
    return model


def round_modules(model: Model, besides: set[str], rule: ScaleRule) -> None:
    """Round a float model's layers to INT4 modules in place, but those at the paths `besides`.

    Norms and selection biases are rounded to the bfloat16 that INT4 checkpoints store them in.
    """
    rounded: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        if path in besides:
            continue
        if isinstance(module, nn.Linear):
            rounded.append((path, Int4Linear(*module.weight.shape[::-1], False, GROUP_SIZE, 4)))
        elif isinstance(module, ExpertLinear):
            rounded.append((path, QuantizedExpertLinear(module.weight, GROUP_SIZE, 4)))
        elif isinstance(module, nn.Embedding):
            rounded.append((path, Int4Embedding(*module.weight.shape, GROUP_SIZE, 4)))
        else:
            for name in ("weight", "expert_bias"):
                if name in module and stored_type(f"{path}.{name}") == mx.bfloat16:
                    module[name] = module[name].astype(mx.bfloat16).astype(module[name].dtype)
            continue
        new = rounded[-1][1]
        new.weight, new.scales, new.biases = int4.affine(module.weight, rule)
        int4.check_scales(f"{path}.weight", new.scales)
        mx.eval(new.parameters())
    model.update_modules(tree_unflatten(rounded))


def quantize_model(
    model: Model, dtype: mx.Dtype = mx.float32, rule: ScaleRule = "unclipped"
) -> Model:
    """Round a float model to INT4 (nearest); returns a new model of INT4 modules."""
    quantized = int4_model(as_quantized(model.args), dtype)
    weights = quantized.sanitize(quantize_parameters(model.parameters(), rule))
    quantized.load_weights(list(weights.items()), strict=True)
    return quantized


@mx.custom_function
def _through_bfloat16(x: mx.array) -> mx.array:
    return x.astype(mx.bfloat16).astype(mx.float32)


@_through_bfloat16.vjp
def _through_bfloat16_vjp(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent


def fake_quantize_parameters(
    parameters: dict[str, Any], rule: ScaleRule = "unclipped"
) -> dict[str, Any]:
    """The parameter tree as its INT4 checkpoint will compute it, float32, same names and shapes.

    Linears, embedding and experts are fake-quantised along the published axes; norms and selection
    biases are only rounded to the bfloat16 they are stored in; the router stays float32. Gradients
    pass straight through. A float model with these parameters computes what the exported INT4
    checkpoint computes.
    """

    def one(name: str, weight: mx.array) -> mx.array:
        dtype = stored_type(name)
        if dtype is None:
            return int4.fake_quantize(weight, rule)
        return _through_bfloat16(weight) if dtype == mx.bfloat16 else weight

    return tree_map_with_path(one, parameters)


def float_model(model: Model) -> Model:
    """A float32 model with an INT4 model's weights, expanded exactly; a float model as it is."""
    if not model.args.quantized:
        return model
    plain = Model(as_float(model.args))
    plain.update(_dequantized(model))
    return plain


def _dequantized(model: Model) -> dict[str, Any]:
    """An INT4 model's parameters as a float32 tree for the float `Model`."""
    flat = dict(tree_flatten(model.parameters()))
    out = []
    for name, tensor in flat.items():
        module, _, leaf = name.rpartition(".")
        if f"{module}.scales" not in flat:
            out.append((name, tensor.astype(mx.float32)))
        elif leaf == "weight":
            packed = int4.from_affine(tensor, flat[f"{module}.scales"])
            out.append((name, int4.dequantize(int4.unpack(packed.qweight), packed.scale)))
    return tree_unflatten(out)
