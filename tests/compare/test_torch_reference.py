"""The PyTorch reference against transformers' own Llama 4 and DeepSeek-V3 modules."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from small_model import small_args  # noqa: E402
from transformers import DeepseekV3Config, Llama4TextConfig  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek  # noqa: E402
from transformers.models.llama4 import modeling_llama4 as llama4  # noqa: E402

from mobilemoe_mlx.compare import torch_checkpoint, torch_model  # noqa: E402
from mobilemoe_mlx.config import PRESETS, ModelArgs, RopeScaling  # noqa: E402
from mobilemoe_mlx.errors import UserError  # noqa: E402

# Unequal factors: transformers' llama3 rule divides by their difference. With 64 original positions
# the wavelengths of 16 pairs fall on both sides and between.
SCALING = RopeScaling(
    factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0
)
ARGS = small_args(
    num_hidden_layers=2, rope_theta=10000.0, rope_scaling=SCALING, max_position_embeddings=512
)
SAME = {"rtol": 1e-5, "atol": 1e-5}  # float32, activations of order one


def llama4_config(args: ModelArgs) -> Llama4TextConfig:
    rope = {**args.rope_scaling.to_dict(), "rope_theta": args.rope_theta}
    config = Llama4TextConfig(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_key_value_heads,
        head_dim=args.head_dim,
        intermediate_size=args.intermediate_size,
        intermediate_size_mlp=args.intermediate_size_mlp,
        num_local_experts=args.num_local_experts,
        num_experts_per_tok=args.num_experts_per_tok,
        vocab_size=args.vocab_size,
        max_position_embeddings=args.max_position_embeddings,
        rms_norm_eps=args.rms_norm_eps,
        rope_parameters=rope,
        use_qk_norm=True,
        attn_temperature_tuning=False,
        no_rope_layers=[1] * args.num_hidden_layers,
        hidden_act="silu",
    )
    config._attn_implementation = "eager"
    return config


def deepseek_config(args: ModelArgs) -> DeepseekV3Config:
    config = DeepseekV3Config(
        hidden_size=args.hidden_size,
        moe_intermediate_size=args.intermediate_size,
        n_shared_experts=args.intermediate_size_mlp // args.intermediate_size,
        n_routed_experts=args.num_local_experts,
        num_experts_per_tok=args.num_experts_per_tok,
        n_group=1,
        topk_group=1,
        norm_topk_prob=args.norm_topk_prob,
        routed_scaling_factor=args.routed_scaling_factor,
        hidden_act="silu",
    )
    config._experts_implementation = "eager"
    return config


def reference(args: ModelArgs = ARGS, seed: int = 0) -> torch_model.TorchMobileMoE:
    """The reference with random weights; norms and selection biases too, so that they matter."""
    torch.manual_seed(seed)
    model = torch_model.TorchMobileMoE(args).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("expert_bias"):
            parameter.normal_(std=0.2)
        else:
            parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
    return model.eval()


def causal(length: int) -> torch.Tensor:
    return torch.full((length, length), -math.inf).triu(1)[None, None]


def transformers_layer(layer: torch_model.DecoderLayer, args: ModelArgs):
    """The same layer put together from transformers' modules."""
    hidden, eps = args.hidden_size, args.rms_norm_eps
    attention = llama4.Llama4TextAttention(llama4_config(args), 0)
    attention.load_state_dict(layer.self_attn.state_dict())
    moe = deepseek_moe(layer.feed_forward, args)
    norms = []
    for ours in (layer.input_layernorm, layer.post_attention_layernorm):
        norm = llama4.Llama4TextRMSNorm(hidden, eps)
        norm.load_state_dict(ours.state_dict())
        norms.append(norm)
    rope = llama4.Llama4TextRotaryEmbedding(llama4_config(args))

    def run(x: torch.Tensor) -> torch.Tensor:
        turns = rope(x, torch.arange(x.shape[1])[None])
        x = x + attention(norms[0](x), turns, causal(x.shape[1]))[0]
        return x + moe(norms[1](x))

    return run


def deepseek_moe(ours: torch_model.MixtureOfExperts, args: ModelArgs) -> deepseek.DeepseekV3MoE:
    moe = deepseek.DeepseekV3MoE(deepseek_config(args)).requires_grad_(False).eval()
    moe.gate.weight.copy_(ours.router.weight)
    moe.gate.e_score_correction_bias.copy_(ours.expert_bias)
    moe.experts.gate_up_proj.copy_(ours.experts.gate_up_proj.transpose(1, 2))
    moe.experts.down_proj.copy_(ours.experts.down_proj.transpose(1, 2))
    moe.shared_experts.load_state_dict(ours.shared_expert.state_dict())
    return moe


def test_frequencies_match_transformers_for_unequal_factors():
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](llama4_config(ARGS), device="cpu")
    ours = torch_model.rope_frequencies(ARGS.head_dim, ARGS.rope_theta, SCALING)
    plain = torch_model.rope_frequencies(ARGS.head_dim, ARGS.rope_theta, None)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6)
    ratios = np.array(ours) / np.array(plain)
    kinds = (ratios == 1).any(), np.isclose(ratios, 1 / 8).any(), ((ratios < 0.9) & (ratios > 0.2))
    assert kinds[0] and kinds[1] and kinds[2].any()  # all three branches are exercised


def test_published_frequencies_state_the_rule_directly():
    args = PRESETS["S"]
    ours = torch_model.rope_frequencies(args.head_dim, args.rope_theta, args.rope_scaling)
    for pair, frequency in enumerate(ours):
        plain = 500000.0 ** (-pair / 32)
        expected = plain / 16 if 2 * math.pi / plain > 8192 else plain
        assert math.isclose(frequency, expected, rel_tol=1e-12)


def test_attention_matches_llama4():
    ours = reference().model.layers[0].self_attn
    theirs = llama4.Llama4TextAttention(llama4_config(ARGS), 0)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 33, ARGS.hidden_size)
    turns = llama4.Llama4TextRotaryEmbedding(llama4_config(ARGS))(x, torch.arange(33)[None])
    with torch.no_grad():
        expected, _ = theirs(x, turns, causal(33))
        torch.testing.assert_close(ours(x), expected, **SAME)


def test_routing_matches_deepseek_v3():
    ours = reference().model.layers[0].feed_forward
    theirs = deepseek_moe(ours, ARGS).gate
    x = torch.randn(200, ARGS.hidden_size)
    logits, weights, experts = theirs(x)
    routing = ours.router(x, ours.expert_bias)
    torch.testing.assert_close(routing.logits, logits, **SAME)
    # As dense [tokens, experts] tables: DeepSeek's slots come in no order.
    dense = torch.zeros(200, ARGS.num_local_experts)
    torch.testing.assert_close(
        dense.scatter(1, routing.experts, routing.weights),
        dense.scatter(1, experts, weights),
        **SAME,
    )
    by_unbiased = routing.logits.topk(4).indices.sort().values
    assert (by_unbiased != routing.experts.sort().values).any()  # the biases do change selections


def test_experts_match_llama4():
    ours = reference().model.layers[0].feed_forward.experts
    theirs = llama4.Llama4TextExperts(llama4_config(ARGS)).requires_grad_(False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, ARGS.hidden_size)
    every = theirs(x.repeat(ARGS.num_local_experts, 1)).unflatten(
        0, (-1, 3)
    )  # [experts, tokens, d]
    chosen = torch.tensor([[0, 11, 5, 3], [7, 1, 2, 9], [11, 10, 9, 8]])
    weights = torch.rand(3, 4)
    expected = (every[chosen, torch.arange(3)[:, None]] * weights[..., None]).sum(1)
    routing = torch_model.Routing(weights, weights, chosen, weights, chosen >= 0)
    torch.testing.assert_close(ours(x, routing), expected, **SAME)


def test_shared_expert_matches_llama4():
    ours = reference().model.layers[0].feed_forward.shared_expert
    theirs = llama4.Llama4TextMLP(llama4_config(ARGS), ARGS.intermediate_size_mlp)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, ARGS.hidden_size)
    torch.testing.assert_close(ours(x), theirs(x), **SAME)


@torch.no_grad()
def test_mixture_matches_deepseek_v3():
    ours = reference().model.layers[0].feed_forward
    x = torch.randn(2, 33, ARGS.hidden_size)
    torch.testing.assert_close(ours(x)[0], deepseek_moe(ours, ARGS)(x), **SAME)


@torch.no_grad()
def test_whole_model_matches_layers_of_transformers_modules():
    model = reference()
    tokens = torch.randint(ARGS.vocab_size, (2, 33))
    output = model(tokens)
    x = model.model.embed_tokens.weight[tokens]
    for layer, hidden in zip(model.model.layers, output.hidden, strict=True):
        x = transformers_layer(layer, ARGS)(x)
        torch.testing.assert_close(hidden, x, rtol=1e-4, atol=1e-4)
    norm = llama4.Llama4TextRMSNorm(ARGS.hidden_size, ARGS.rms_norm_eps)
    norm.load_state_dict(model.model.norm.state_dict())
    logits = norm(x) @ model.model.embed_tokens.weight.T
    torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-4)


def test_ties_go_to_the_lower_index():
    router = torch_model.Router(ARGS)  # zero weights: every score is 1/2
    bias = torch.zeros(ARGS.num_local_experts)
    bias[7] = 0.25
    routing = router(torch.randn(3, ARGS.hidden_size), bias)
    assert routing.experts.tolist() == [[7, 0, 1, 2]] * 3
    torch.testing.assert_close(routing.weights, torch.full((3, 4), 2.5 / 4))


def write_folder(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ARGS.to_dict()))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file)
        weight_map.update(dict.fromkeys(names[shard::shards], file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@torch.no_grad()
def test_folders_load_alike_in_every_form(tmp_path: Path):
    model = reference()
    tensors = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    dotted = {f"{n}.weight" if n.endswith("_up_proj") else n: t for n, t in tensors.items()}
    folders = [
        write_folder(tmp_path / "one", tensors),
        write_folder(tmp_path / "shards", tensors, shards=3),
        write_folder(tmp_path / "dotted", dotted),
    ]
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    tokens = torch.randint(ARGS.vocab_size, (1, 9))
    for folder in folders:
        loaded = torch_checkpoint.load_torch_model(folder)
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=0)


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path):
    tensors = dict(reference().state_dict())
    tensors["model.strange.weight"] = tensors.pop("model.norm.weight")
    folder = write_folder(tmp_path / "bad", tensors)
    with pytest.raises(UserError, match=r"(?s)model\.norm\.weight.*model\.strange\.weight"):
        torch_checkpoint.load_torch_model(folder)


def test_a_truncated_file_is_named(tmp_path: Path):
    folder = write_folder(tmp_path / "cut", reference().state_dict())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole"):
        torch_checkpoint.load_torch_model(folder)


def test_int4_is_dequantised_exactly():
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (3, 64))
    scale = rng.normal(size=(3, 2)).astype(np.float16)
    scale[0, 0] = 6e-8  # subnormal
    nibbles = codes.astype(np.uint8) & 15
    packed = nibbles[:, 0::2] + 16 * nibbles[:, 1::2]
    ours = torch_checkpoint.dequantize_one(torch.tensor(packed), torch.tensor(scale))
    expected = codes * np.repeat(scale.astype(np.float64), 32, axis=1)
    np.testing.assert_array_equal(ours.numpy(), expected)


def test_without_torch_the_command_says_how_to_install_it(bf16_folder: Path):
    """And goes without it where nothing is to run in it."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None\n"
        "from mobilemoe_mlx.cli.main import main\n"
        "call = ['compare', sys.argv[1], '--tokens', '4']\n"
        "assert main([*call, '--engine-b', 'mlx']) == 0\n"
        "sys.exit(main(call))\n"
    )
    call = [sys.executable, "-c", code, str(bf16_folder)]
    result = subprocess.run(call, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "pip install --editable '.[torch]'" in result.stderr
