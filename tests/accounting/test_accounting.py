"""Parameters, bytes and FLOPs against the published table, a published file and real modules."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mobilemoe_mlx.accounting.cost import KV_CACHE_TYPES, account
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.config import PRESETS, ModelArgs
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.experts import ExpertLinear
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import quantize_parameters

SMALL = ModelArgs(  # every size different from every other, so that no two can be swapped
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=32,
    intermediate_size_mlp=160,
    num_local_experts=7,
    num_experts_per_tok=2,
    vocab_size=320,
    max_position_embeddings=128,
    rope_scaling=None,
    bos_token_id=0,
    eos_token_id=(1,),
)


@pytest.mark.parametrize(
    ("name", "active", "total", "int4"),
    [
        ("S", "272M", "1.26B", "0.68"),
        ("M", "528M", "2.82B", "1.48"),
        ("L", "922M", "5.33B", "2.75"),
    ],
)
def test_agrees_with_the_published_table(name: str, active: str, total: str, int4: str) -> None:
    a = account(PRESETS[name])
    assert f"{a.active_parameters / 1e6:.0f}M" == active
    assert f"{a.total_parameters / 1e9:.2f}B" == total
    assert f"{a.int4_bytes_paper / 1e9:.2f}" == int4


def test_int4_bytes_are_those_of_the_published_file() -> None:
    header = json.dumps(_published_int4_header(PRESETS["S"]), separators=(",", ":"))
    padded = math.ceil(len(header) / 8) * 8  # safetensors aligns its header to 8 bytes
    assert account(PRESETS["S"]).int4_bytes + 8 + padded == 713_916_240


@pytest.mark.parametrize("args", [PRESETS["tiny"], SMALL], ids=["tiny", "small"])
def test_agrees_with_real_tensors(args: ModelArgs) -> None:
    model = Model(args)
    a = account(args)
    arrays = [array for _, array in tree_flatten(model.parameters())]
    assert a.total_parameters == sum(array.size for array in arrays)
    assert a.bf16_bytes == sum(array.astype(mx.bfloat16).nbytes for array in arrays)
    packed = quantize_parameters(model.parameters())
    assert a.int4_bytes == sum(array.nbytes for array in packed.values())


@pytest.mark.parametrize("args", [PRESETS["tiny"], SMALL], ids=["tiny", "small"])
def test_active_parameters_are_those_of_a_model_with_only_the_selected_experts(
    args: ModelArgs,
) -> None:
    one_token = dataclasses.replace(args, num_local_experts=args.num_experts_per_tok)
    dense = account(one_token)
    # The whole router and its biases run for every token, selected or not.
    routing = (
        args.num_hidden_layers
        * (args.num_local_experts - args.num_experts_per_tok)
        * (args.hidden_size + 1)
    )
    assert account(args).active_parameters == dense.total_parameters + routing


def test_matmul_parameters_are_the_matrices_of_the_modules() -> None:
    model = Model(SMALL)
    selected = SMALL.num_experts_per_tok / SMALL.num_local_experts
    expected = 0.0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) or name.endswith("router"):
            expected += module.weight.size
        elif isinstance(module, ExpertLinear):
            expected += module.weight.size * selected
    assert account(SMALL).matmul_parameters == expected


def test_kv_bytes_are_those_of_a_cache() -> None:
    model = Model(SMALL)
    tokens = 5
    for name in KV_CACHE_TYPES:
        model.set_dtype(getattr(mx, name))
        cache = model.make_cache()
        mx.eval(model(mx.arange(tokens)[None], cache))
        held = sum(array.nbytes for c in cache for array in c.keys_and_values())
        assert held == tokens * account(SMALL).kv_bytes_per_token[name]


def test_attention_flops_grow_with_the_context() -> None:
    one, many = account(SMALL, 1), account(SMALL, 101)
    scores_and_sum = 2 * 2 * 6 * 16  # heads x head_dim, two products, two operations each
    assert many.flops_per_token - one.flops_per_token == 100 * 3 * scores_and_sum
    assert one.flops_per_token - 3 * scores_and_sum == 2 * one.matmul_parameters
    assert account(SMALL) == account(SMALL, 128)
    for context in (0, -1, 129):
        with pytest.raises(UserError, match=f"{context} tokens: this model takes 1 to 128"):
            account(SMALL, context)


def test_info_of_all_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["info"]) == 0
    table = capsys.readouterr().out
    for text in ("tiny", "272.5M", "1.26B", "5.33B", "713.9 MB", "20.5 kB"):
        assert text in table


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["info", "S", "--json", "--context", "1024"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["name"] == "S"
    assert record["context"] == 1024
    assert record["flops_per_token"] == account(PRESETS["S"], 1024).flops_per_token
    assert record["kv_bytes_per_token"]["bfloat16"] == 20_480


def test_info_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    packed = quantize_parameters(Model(SMALL).parameters())
    half = len(packed) // 2
    mx.save_safetensors(str(tmp_path / "a.safetensors"), dict(list(packed.items())[:half]))
    mx.save_safetensors(str(tmp_path / "b.safetensors"), dict(list(packed.items())[half:]))
    size = sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    assert main.main(["info", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["total_parameters"] == account(SMALL).total_parameters
    assert record["files"] == {"layout": "packed INT4", "count": 2, "bytes": size}
    assert main.main(["info", str(tmp_path)]) == 0
    assert "packed INT4, 2 files" in capsys.readouterr().out


def test_info_of_nothing_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    for name, hint in (
        ("tinny", "did you mean 'tiny'?"),
        ("./nowhere", "no preset and no folder or file ./nowhere"),
    ):
        assert main.main(["info", name]) == 2
        assert hint in capsys.readouterr().err


def _published_int4_header(args: ModelArgs) -> dict[str, object]:
    """The header that safetensors writes for the packed layout of docs/model.md, "Tensors"."""
    d, w, e = args.hidden_size, args.intermediate_size, args.num_local_experts
    tensors: dict[str, tuple[str, list[int]]] = {"model.norm.weight": ("BF16", [d])}

    def linear(name: str, rows: int, columns: int) -> None:
        tensors[f"{name}.qweight"] = ("U8", [rows, columns // 2])
        tensors[f"{name}.weight_scale"] = ("F16", [rows, columns // 32])

    linear("model.embed_tokens", args.vocab_size, d)
    for layer in range(args.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = ("BF16", [d])
        tensors[f"{prefix}.post_attention_layernorm.weight"] = ("BF16", [d])
        for name, rows in (("q", d), ("k", 256), ("v", 256), ("o", d)):
            linear(f"{prefix}.self_attn.{name}_proj", rows, d)
        moe = f"{prefix}.feed_forward"
        tensors[f"{moe}.router.weight"] = ("F32", [e, d])
        tensors[f"{moe}.expert_bias"] = ("BF16", [e])
        tensors[f"{moe}.experts.gate_up_qweight"] = ("U8", [e, d, w])
        tensors[f"{moe}.experts.gate_up_scale"] = ("F16", [e, d, 2 * w // 32])
        tensors[f"{moe}.experts.down_qweight"] = ("U8", [e, w, d // 2])
        tensors[f"{moe}.experts.down_scale"] = ("F16", [e, w, d // 32])
        for name, rows, columns in (("gate", 2 * d, d), ("up", 2 * d, d), ("down", d, 2 * d)):
            linear(f"{moe}.shared_expert.{name}_proj", rows, columns)
    size = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    # safetensors orders tensors by alignment, then by name.
    order = ("F32", "BF16", "F16", "U8")
    start = 0
    for name in sorted(tensors, key=lambda n: (order.index(tensors[n][0]), n)):
        dtype, shape = tensors[name]
        end = start + size[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    return header
