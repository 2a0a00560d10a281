"""Read a published folder into the PyTorch reference, through `safetensors` alone.

Nothing of the MLX loader is used, nor its reading of config.json, so that a mistake there cannot
hide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mobilemoe_mlx import files
from mobilemoe_mlx.compare.torch_model import TorchMobileMoE
from mobilemoe_mlx.config import GROUP_SIZE
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.verify.config_reader import read_reference_config

import torch  # isort: skip  (after torch_model, which explains a missing PyTorch)
from safetensors import SafetensorError, safe_open  # isort: skip
from torch import Tensor  # isort: skip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Used in float32 whatever the model's type.
_FLOAT32 = (".router.weight", ".expert_bias")


def load_torch_model(
    folder: Path, dtype: str = "float32", adapters: Sequence[tuple[Path, float]] = ()
) -> TorchMobileMoE:
    """The reference with the weights of `folder`: either published layout, one file or shards.

    `adapters`: folders with weights, added to the matrices in float32. INT4 is dequantised exactly
    in float32, then cast to `dtype`. Raises UserError for a tensor that is missing, unexpected, or
    of the wrong shape.
    """
    config = read_reference_config(folder)
    with torch.device("meta"):
        model = TorchMobileMoE(config)
    weights = {}
    for name, tensor in with_adapters(dequantize(read_tensors(folder)), adapters).items():
        kept = name.endswith(_FLOAT32)
        weights[name] = tensor.to(torch.float32 if kept else DTYPES[dtype])
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"{folder} does not hold the model its config.json describes: {error}"
        ) from None
    return model.eval().requires_grad_(False)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's model.safetensors, or of the files that its index names."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(files.read_json(index)["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    tensors = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    tensors[key] = file.get_tensor(key)
        except FileNotFoundError:
            raise UserError(f"{folder} has no file {name}: is the download complete?") from None
        except SafetensorError as error:
            raise UserError(f"{folder / name} is not a whole safetensors file: {error}.") from None
    return tensors


def dequantize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors of either layout to float tensors under the BF16 layout's names."""
    # suffix of the codes -> (suffix of their scales, suffix of the float tensor)
    packed = {
        ".experts.gate_up_qweight": (".experts.gate_up_scale", ".experts.gate_up_proj"),
        ".experts.down_qweight": (".experts.down_scale", ".experts.down_proj"),
        ".qweight": (".weight_scale", ".weight"),
    }
    rest = dict(tensors)
    out = {}
    for name in tensors:
        for codes, (scale, plain) in packed.items():
            if name.endswith(codes):
                stem = name.removesuffix(codes)
                if stem + scale not in rest:
                    raise UserError(f"{name} has no scales: {stem + scale} is missing.")
                out[stem + plain] = dequantize_one(rest.pop(name), rest.pop(stem + scale))
                break
    for name, tensor in rest.items():
        # Experts of the BF16 layout are accepted with and without the trailing `.weight`.
        bare = name.removesuffix(".weight")
        out[bare if ".experts." in name else name] = tensor
    return out


def dequantize_one(packed: Tensor, scale: Tensor) -> Tensor:
    """uint8 [..., n / 2] and float16 [..., n / 32] to float32 [..., n], by looking nibbles up."""
    values = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1.0])
    nibbles = torch.stack((packed % 16, packed // 16), dim=-1).flatten(-2)  # low nibble first
    return values[nibbles.int()] * scale.float().repeat_interleave(GROUP_SIZE, dim=-1)


def with_adapters(
    tensors: dict[str, Tensor], adapters: Sequence[tuple[Path, float]]
) -> dict[str, Tensor]:
    """Float tensors with the updates of adapters added, in float32."""
    out = dict(tensors)
    for folder, weight in adapters:
        content = files.read_json(folder / "adapter_config.json")
        scale = content["lora_parameters"]["scale"] * weight
        with safe_open(folder / "adapters.safetensors", framework="pt") as file:
            parts = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        for name in parts:
            stem, _, part = name.rpartition(".")
            if part == "expert_bias":
                out[name] = out[name].float() + weight * (parts[name] - out[name].float())
            if part != "lora_a":
                continue
            matrix = stem if ".experts." in stem else f"{stem}.weight"
            update = scale * parts[name] @ parts[f"{stem}.lora_b"]
            if update.dim() == 2 and not stem.endswith("embed_tokens"):  # stored [out, in]
                update = update.T
            summed = out[matrix].float() + update
            if f"{stem}.m" in parts:  # DoRA: lengths along "in", of the embedding along hidden
                length = summed.norm(dim=1, keepdim=True).clamp_min(1e-30)
                summed = summed / length * parts[f"{stem}.m"].unsqueeze(1)
            out[matrix] = summed
    return out
