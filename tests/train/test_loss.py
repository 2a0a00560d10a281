"""The chunked loss against automatic differentiation and torch; z-loss, masks and expert counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from training_fixtures import bare_recipe, random_batch

from mobilemoe_mlx import capacity, int4
from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.model import LayerTrace, Model
from mobilemoe_mlx.quantized import Int4Embedding
from mobilemoe_mlx.train.loss import LossSums, cross_entropy_sum, loss_sums

ROWS, CONTEXT = 3, 30
CHUNKS = [1, 7, 30, 64, 90, 2**40]  # of 90 tokens: one at a time, ragged, whole, and more than all


@pytest.fixture
def model(tmp_path: Path) -> Model:
    mx.random.seed(0)
    model = Model(bare_recipe(tmp_path, ["model.vocab_size=50", "model.eos_token_id=[1]"]).model)
    mx.eval(model.parameters())
    return model


def hidden_and_targets(model: Model) -> tuple[mx.array, Batch]:
    hidden = mx.random.normal((ROWS, CONTEXT, model.args.hidden_size))
    return hidden, random_batch(ROWS, CONTEXT, model.args.vocab_size)


def limit_capacity(model: Model, factor: float | None) -> None:
    for layer in model.layers:
        layer.feed_forward.capacity_factor = factor


def arrays(batch: Batch) -> list[mx.array]:
    return [mx.array(part) for part in batch]


def relative_error(ours: mx.array, theirs: mx.array) -> float:
    """Norm of the difference over the norm, in float32."""
    ours, theirs = ours.astype(mx.float32), theirs.astype(mx.float32)
    return (mx.linalg.norm((ours - theirs).flatten()) / mx.linalg.norm(theirs.flatten())).item()


def autodiff(weight: mx.array, hidden: mx.array, batch: Batch) -> tuple[mx.array, Any]:
    """Value and gradients of the plain loss: all logits at once."""

    def loss(weight: mx.array, hidden: mx.array) -> mx.array:
        logits = (hidden @ weight.T).astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, mx.array(batch.targets), reduction="none")
        return (losses * mx.array(batch.loss_mask)).sum()

    return mx.value_and_grad(loss, argnums=(0, 1))(weight, hidden)


def chunked(
    model: Model, weight: mx.array, hidden: mx.array, batch: Batch, chunk: int, scale: float = 1.0
) -> tuple[mx.array, Any]:
    def loss(weight: mx.array, hidden: mx.array) -> mx.array:
        model.model.embed_tokens.weight = weight
        targets, mask = mx.array(batch.targets), mx.array(batch.loss_mask)
        return scale * cross_entropy_sum(model, hidden, targets, mask, chunk)

    return mx.value_and_grad(loss, argnums=(0, 1))(weight, hidden)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_cross_entropy_is_autodiffs(model: Model, chunk: int):
    hidden, batch = hidden_and_targets(model)
    weight = model.model.embed_tokens.weight
    loss, gradients = chunked(model, weight, hidden, batch, chunk, scale=0.25)
    expected, expected_gradients = autodiff(weight, hidden, batch)
    assert loss.item() == pytest.approx(0.25 * expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(ours, 0.25 * theirs) < 1e-5


def test_cross_entropy_is_torchs(model: Model):
    torch = pytest.importorskip("torch")
    hidden, batch = hidden_and_targets(model)
    weight = model.model.embed_tokens.weight
    loss, gradients = chunked(model, weight, hidden, batch, 7)
    leaves = [torch.tensor(np.array(x), requires_grad=True) for x in (weight, hidden)]
    logits = (leaves[1] @ leaves[0].T).flatten(0, 1)
    targets = torch.tensor(np.where(batch.loss_mask > 0, batch.targets, -100)).flatten().long()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, leaf in zip(gradients, leaves, strict=True):
        assert relative_error(ours, mx.array(leaf.grad.numpy())) < 1e-5


def test_large_logits_do_not_overflow(model: Model):
    hidden, batch = hidden_and_targets(model)
    weight = model.model.embed_tokens.weight * 1000
    loss, gradients = chunked(model, weight, hidden, batch, 64)
    expected, expected_gradients = autodiff(weight, hidden, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("chunk", [5, 1500])
def test_bfloat16_stays_near_float32_even_for_one_frequent_target(model: Model, chunk: int):
    # bfloat16 has 8 bits: 2^-8 = 4e-3 a rounding. Hundreds of additions to one row of the
    # gradient would be off by far more.
    weight = model.model.embed_tokens.weight.astype(mx.bfloat16)
    hidden = (1 + mx.random.normal((1, 1500, model.args.hidden_size))).astype(mx.bfloat16)
    batch = random_batch(1, 1500, model.args.vocab_size)
    batch = batch._replace(targets=np.full_like(batch.targets, 7))
    loss, gradients = chunked(model, weight, hidden, batch, chunk)
    expected, expected_gradients = autodiff(
        weight.astype(mx.float32), hidden.astype(mx.float32), batch
    )
    assert loss.dtype == mx.float32 and gradients[0].dtype == mx.bfloat16
    assert loss.item() == pytest.approx(expected.item(), rel=4e-3)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(ours, theirs) < 4e-3


def test_z_loss_and_counts_follow_their_formulas(model: Model):
    batch = random_batch(ROWS, CONTEXT, model.args.vocab_size)
    sums = loss_sums(model, *arrays(batch))
    trace: list[LayerTrace] = []
    model.model(mx.array(batch.inputs), trace=trace)
    real = (batch.documents >= 0).flatten()
    z = 0.0
    for layer, counts in zip(trace, sums.counts, strict=True):
        logits = np.array(layer.routing.logits, np.float64)[real]
        z += (np.log(np.exp(logits).sum(axis=-1)) ** 2).sum()
        chosen = np.array(layer.routing.experts)[real].flatten()
        assert counts.tolist() == np.bincount(chosen, minlength=8).tolist()
    assert sums.z.item() == pytest.approx(z, rel=1e-5)
    assert (sums.counts.sum(axis=-1) == real.sum() * model.args.num_experts_per_tok).all()


def test_places_are_counted_once_a_layer(model: Model, monkeypatch):
    batch = random_batch(ROWS, CONTEXT, model.args.vocab_size)
    limit_capacity(model, 1.0)
    counted: list[np.ndarray] = []

    def within_capacity(*args: Any) -> mx.array:
        fits = capacity.within_capacity(*args)
        counted.append(np.array(fits))
        return fits

    monkeypatch.setattr("mobilemoe_mlx.model.within_capacity", within_capacity)
    sums = loss_sums(model, *arrays(batch))
    assert sums.dropped.tolist() == [(~fits)[batch.documents >= 0].sum() for fits in counted]
    assert mx.all(sums.dropped > 0).item()


@pytest.mark.parametrize("factor", [None, 1.0])
def test_padding_counts_nowhere(model: Model, factor: float | None):
    limit_capacity(model, factor)
    batch = random_batch(ROWS, CONTEXT, model.args.vocab_size)
    padding = batch.documents < 0
    assert padding.any()
    other = batch._replace(
        inputs=np.where(padding, 33, batch.inputs), targets=np.where(padding, 44, batch.targets)
    )
    for ours, theirs in zip(sums_of(model, batch), sums_of(model, other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def sums_of(model: Model, batch: Batch, **options: Any) -> list[np.ndarray]:
    return [np.array(x) for x in loss_sums(model, *arrays(batch), **options)]


def test_packed_documents_cost_what_each_costs_alone(model: Model):
    first, second = (random_batch(1, n, model.args.vocab_size, seed=n) for n in (17, 13))
    first, second = (
        b._replace(documents=np.zeros_like(b.documents), loss_mask=np.ones_like(b.loss_mask))
        for b in (first, second)
    )
    packed = Batch(*(np.concatenate(parts, axis=1) for parts in zip(first, second, strict=True)))
    packed.documents[:, 17:] = 1
    alone = [sums_of(model, first), sums_of(model, second)]
    together = sums_of(model, packed, document_mask=True)
    for ours, *theirs in zip(together, *alone, strict=True):
        np.testing.assert_allclose(ours, sum(theirs), rtol=1e-5)
    # Without the mask the second document sees the first one.
    leaking = sums_of(model, packed, document_mask=False)
    assert abs(leaking[0] - together[0]) > 1e-3 * together[0]


@pytest.mark.parametrize("document_mask", [False, True])
def test_activation_checkpointing_changes_nothing(model: Model, document_mask: bool):
    batch = arrays(random_batch(ROWS, CONTEXT, model.args.vocab_size))
    parameters = model.trainable_parameters()

    def evaluate(activation_checkpointing: bool) -> tuple[LossSums, Any]:
        def objective(parameters: Any) -> tuple[mx.array, LossSums]:
            model.update(parameters)
            sums = loss_sums(
                model,
                *batch,
                document_mask=document_mask,
                activation_checkpointing=activation_checkpointing,
                chunk=32,
            )
            return sums.cross_entropy + 1e-2 * sums.z, sums

        (_, sums), gradients = mx.value_and_grad(objective)(parameters)
        mx.eval(sums, gradients)
        return sums, gradients

    plain, plain_gradients = evaluate(False)
    again, again_gradients = evaluate(True)
    for ours, theirs in zip(again, plain, strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-6)
    theirs = dict(tree_flatten(plain_gradients))
    ours = dict(tree_flatten(again_gradients))
    assert ours.keys() == theirs.keys()
    assert any("router" in name for name in ours)
    for name, gradient in ours.items():
        assert mx.abs(theirs[name]).max().item() > 0, name
        assert relative_error(gradient, theirs[name]) < 1e-5, name


def frozen_embedding(model: Model, kind: str) -> mx.array:
    """Freeze the model's embedding, as INT4 modules or as it is; its exact float32 weight."""
    if kind == "int4":
        codes, scale = int4.quantize(model.model.embed_tokens.weight)
        packed = int4.pack(codes)
        embedding = Int4Embedding(*codes.shape, 32, 4)
        embedding.weight, embedding.scales = int4.affine_codes(packed), scale
        embedding.biases = int4.affine_biases(scale)
        model.model.embed_tokens = embedding
        return int4.dequantize(codes, scale)
    model.model.embed_tokens.freeze()
    return model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["float", "int4"])
@pytest.mark.parametrize("chunk", [7, 2**40])
def test_a_frozen_head_has_the_gradient_of_its_inputs_alone(model: Model, chunk: int, kind: str):
    hidden, batch = hidden_and_targets(model)
    weight = frozen_embedding(model, kind)

    def loss(hidden: mx.array) -> mx.array:
        targets, mask = mx.array(batch.targets), mx.array(batch.loss_mask)
        return 0.25 * cross_entropy_sum(model, hidden, targets, mask, chunk)

    value, gradient = mx.value_and_grad(loss)(hidden)
    expected, (_, expected_gradient) = autodiff(weight, hidden, batch)
    assert value.item() == pytest.approx(0.25 * expected.item(), rel=1e-6)
    assert relative_error(gradient, 0.25 * expected_gradient) < 1e-5


class ShiftedEmbedding(nn.Module):
    """A frozen embedding with something else of its own that is trained."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.shift = mx.random.normal((embedding.weight.shape[0],))
        self.embedding.freeze()

    def as_linear(self, x: mx.array) -> mx.array:
        return self.embedding.as_linear(x) + self.shift * x.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("chunk", [7, 2**40])
def test_a_head_with_an_adapter_is_autodiffs(model: Model, chunk: int):
    hidden, batch = hidden_and_targets(model)
    weight = model.model.embed_tokens.weight
    model.model.embed_tokens = ShiftedEmbedding(model.model.embed_tokens)

    def loss(shift: mx.array, hidden: mx.array) -> mx.array:
        model.model.embed_tokens.shift = shift
        targets, mask = mx.array(batch.targets), mx.array(batch.loss_mask)
        return cross_entropy_sum(model, hidden, targets, mask, chunk)

    def plain(shift: mx.array, hidden: mx.array) -> mx.array:
        logits = hidden @ weight.T + shift * hidden.sum(axis=-1, keepdims=True)
        losses = nn.losses.cross_entropy(logits, mx.array(batch.targets), reduction="none")
        return (losses * mx.array(batch.loss_mask)).sum()

    shift = model.model.embed_tokens.shift
    value, gradients = mx.value_and_grad(loss, argnums=(0, 1))(shift, hidden)
    expected, expected_gradients = mx.value_and_grad(plain, argnums=(0, 1))(shift, hidden)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(ours, theirs) < 1e-5
