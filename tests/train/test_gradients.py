"""Gradients and optimiser steps against PyTorch autograd, parameter by parameter."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from small_model import small_args  # noqa: E402

from mobilemoe_mlx import experts  # noqa: E402
from mobilemoe_mlx.compare.torch_model import TorchMobileMoE  # noqa: E402
from mobilemoe_mlx.compare.torch_training import forward_form  # noqa: E402
from mobilemoe_mlx.config import PRESETS, ModelArgs  # noqa: E402
from mobilemoe_mlx.model import LayerTrace, Model  # noqa: E402
from mobilemoe_mlx.quantized import fake_quantize_parameters  # noqa: E402

ARGS = small_args(max_position_embeddings=512)
Z_LOSS = 1e-4  # model.md, training recipe
# max |difference| / max |gradient| of each parameter. float32 has 6e-8; the sums are over at most
# a few hundred terms through three layers.
TOLERANCE = 1e-4
SEQUENCES = {"unsorted": (1, 9), "sorted": (2, 65)}  # (batch, tokens): 32 and 512 pairs


def mlx_model(args: ModelArgs = ARGS) -> Model:
    """A model whose norms and selection biases are not trivial."""
    mx.random.seed(0)
    model = Model(args)
    for layer in model.layers:
        layer.feed_forward.expert_bias = 0.1 * mx.random.normal((args.num_local_experts,))
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.weight = mx.random.uniform(0.5, 1.5, module.weight.shape)
    model.model.embed_tokens.weight = 0.3 * mx.random.normal((args.vocab_size, args.hidden_size))
    mx.eval(model.parameters())
    return model


def published(name: str) -> str:
    """The MLX model's parameter name -> the published one, which PyTorch's reference uses."""
    return name.removesuffix(".weight") if ".experts." in name else name


def as_torch(tree: Any) -> dict[str, torch.Tensor]:
    return {published(n): torch.tensor(np.array(v)) for n, v in tree_flatten(tree)}


def torch_copy(model: Model) -> TorchMobileMoE:
    copy = TorchMobileMoE(model.args)
    copy.load_state_dict(as_torch(model.parameters()))
    return copy


def some_tokens(batch: int, length: int, vocabulary: int = ARGS.vocab_size) -> np.ndarray:
    return np.random.default_rng(7).integers(vocabulary, size=(batch, length))


def mlx_loss(model: Model, tokens: mx.array) -> mx.array:
    traced: list[LayerTrace] = []
    logits = model.logits(model.model(tokens[:, :-1], trace=traced))
    loss = nn.losses.cross_entropy(logits, tokens[:, 1:], reduction="mean")
    z = mx.stack([mx.logsumexp(t.routing.logits, axis=-1) for t in traced])
    return loss + Z_LOSS * mx.square(z).mean()


def torch_loss(output: Any, tokens: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(output.logits.flatten(0, 1), tokens[:, 1:].flatten())
    z = torch.stack([routing.logits.logsumexp(-1) for routing in output.routing])
    return loss + Z_LOSS * z.square().mean()


def assert_same_gradients(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = TOLERANCE
) -> None:
    assert ours.keys() == theirs.keys()
    errors = {}
    for name, expected in theirs.items():
        scale = expected.abs().max()
        assert scale > 0, f"{name} has no gradient"
        errors[name] = ((ours[name] - expected).abs().max() / scale).item()
    worst = max(errors, key=lambda name: errors[name])
    print(f"{len(errors)} parameters, largest gradient error {errors[worst]:.1e} in {worst}")
    assert errors[worst] < tolerance


@pytest.mark.parametrize("preset", ["small", "tiny"])
@pytest.mark.parametrize("shape", SEQUENCES.values(), ids=SEQUENCES)
def test_every_gradient_matches_autograd(shape: tuple[int, int], preset: str, monkeypatch):
    used = []
    original = experts.dispatch
    monkeypatch.setattr(experts, "dispatch", lambda *a: used.append(a) or original(*a))
    model = mlx_model(PRESETS.get(preset, ARGS))
    tokens = some_tokens(*shape, model.args.vocab_size)
    loss, gradients = nn.value_and_grad(model, mlx_loss)(model, mx.array(tokens))
    assert bool(used) == (shape == SEQUENCES["sorted"])

    reference = torch_copy(model)
    expected = torch_loss(reference(torch.tensor(tokens)[:, :-1]), torch.tensor(tokens))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = {n: p.grad for n, p in reference.named_parameters() if p.requires_grad}
    assert_same_gradients(as_torch(gradients), theirs)


def test_gradients_do_not_depend_on_the_dispatch(monkeypatch):
    model = mlx_model()
    tokens = mx.array(some_tokens(2, 33))
    results = []
    for sort_from, block in ((10**9, 32), (0, 32), (0, 4)):
        monkeypatch.setattr(experts, "_SORT_FROM", sort_from)
        monkeypatch.setattr(experts, "_CPU_BLOCK", block)
        results.append(as_torch(nn.value_and_grad(model, mlx_loss)(model, tokens)[1]))
    assert_same_gradients(results[1], results[0], 1e-5)
    assert_same_gradients(results[2], results[0], 1e-5)


@pytest.mark.parametrize("shape", SEQUENCES.values(), ids=SEQUENCES)
def test_every_qat_gradient_matches_a_straight_through_autograd(shape: tuple[int, int]):
    model = mlx_model()
    tokens = some_tokens(*shape)
    parameters = model.parameters()
    reference = torch_copy(model)

    def loss_of(parameters: dict[str, Any]) -> mx.array:
        model.update(fake_quantize_parameters(parameters))
        return mlx_loss(model, mx.array(tokens))

    loss, gradients = mx.value_and_grad(loss_of)(parameters)
    ours = as_torch(gradients)
    for name in [n for n in ours if n.endswith("expert_bias")]:
        assert not ours.pop(name).any()  # selection biases get no gradient

    quantised = {
        n: forward_form(n, p, torch.float32, quantize=True) for n, p in reference.named_parameters()
    }
    output = torch.func.functional_call(
        reference, quantised, (torch.tensor(tokens)[:, :-1],), tie_weights=False
    )
    expected = torch_loss(output, torch.tensor(tokens))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = {n: p.grad for n, p in reference.named_parameters() if p.requires_grad}
    assert_same_gradients(ours, theirs)


def test_adamw_with_bias_correction_is_torchs():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(40, 30)).astype(np.float32)
    gradients = [(rng.normal(size=start.shape) * 1e-3).astype(np.float32) for _ in range(4)]
    settings = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours = {"w": mx.array(start)}
    optimizer = optim.AdamW(1e-2, bias_correction=True, **settings)
    theirs = torch.nn.Parameter(torch.tensor(start))
    reference = torch.optim.AdamW([theirs], lr=1e-2, **settings)
    for gradient in gradients:
        ours = optimizer.apply_gradients({"w": mx.array(gradient)}, ours)
        theirs.grad = torch.tensor(gradient)
        reference.step()
        np.testing.assert_allclose(np.array(ours["w"]), theirs.detach().numpy(), atol=1e-6)


def test_training_steps_follow_torch():
    model, tokens = mlx_model(), some_tokens(2, 33)
    reference = torch_copy(model)
    settings = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = optim.AdamW(3e-3, bias_correction=True, **settings)
    parameters = [p for p in reference.parameters() if p.requires_grad]
    torch_optimizer = torch.optim.AdamW(parameters, lr=3e-3, **settings)
    step = nn.value_and_grad(model, mlx_loss)
    ours, theirs = [], []
    for _ in range(6):
        loss, gradients = step(model, mx.array(tokens))
        optimizer.update(model, gradients)
        ours.append(loss.item())
        expected = torch_loss(reference(torch.tensor(tokens)[:, :-1]), torch.tensor(tokens))
        torch_optimizer.zero_grad()
        expected.backward()
        torch_optimizer.step()
        theirs.append(expected.item())
    assert theirs[-1] < 0.9 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
