"""Costs of layers, kinds and experts, against losses that are computed in another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.quantized import quantize_model
from mobilemoe_mlx.sensitivity.experts import estimate_experts, expert_parts
from mobilemoe_mlx.sensitivity.losses import document_losses
from mobilemoe_mlx.sensitivity.measure import Sensitivity, sensitivity
from mobilemoe_mlx.sensitivity.parts import Rounding, parts_of
from mobilemoe_mlx.train.evaluate import heldout_loss


@pytest.fixture
def model(bf16_folder: Path) -> Model:
    return load_model(bf16_folder, mx.float32)


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """Two batches of two rows, three documents in each and padding at the end."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(2):
        documents = np.tile(np.repeat([0, 1, 2, -1], [9, 14, 5, 4]), (2, 1)).astype(np.int32)
        inputs, targets = rng.integers(3, 480, (2, 2, 32)).astype(np.int32)
        counts = (documents >= 0) & (rng.random((2, 32)) < 0.7)
        made.append(Batch(inputs, targets, counts.astype(np.float32), documents))
    return made


@pytest.fixture(scope="module")
def found(bf16_folder: Path, batches: list[Batch]) -> Sensitivity:
    model = load_model(bf16_folder, mx.float32)
    size = account(model.args)
    budget = (size.bf16_bytes + size.int4_bytes) // 2
    told: list[int] = []

    def progress(total: int) -> Callable[[], None]:
        return lambda: told.append(total)

    found = sensitivity(
        model, batches, document_mask=True, experts=3, budgets=[budget], progress=progress
    )
    assert told == [len(told)] * len(told) and told
    return found


def test_losses_of_documents_add_up(model: Model, batches: list[Batch]) -> None:
    for mask in (False, True):
        losses = document_losses(model, batches, document_mask=mask, chunk=13)
        assert len(losses.sums) == 12
        assert losses.targets.sum() == sum(b.loss_mask.sum() for b in batches)
        expected = heldout_loss(model, batches, document_mask=mask)
        assert losses.mean == pytest.approx(expected, rel=1e-6)
    # Within the mask a document by itself has the loss that it has among others.
    row = batches[1]
    alone = Batch(*(part[1:2, 9:23] for part in row))
    single = document_losses(model, [alone._replace(documents=alone.documents - 1)],
                             document_mask=False)  # fmt: skip
    assert losses.sums[10] == pytest.approx(single.sums[0], rel=1e-5)


def test_ends_are_the_bf16_and_the_int4_model(
    model: Model, batches: list[Batch], found: Sensitivity
) -> None:
    bf16 = heldout_loss(model, batches, document_mask=True)
    int4 = heldout_loss(quantize_model(model), batches, document_mask=True)
    assert found.loss_bf16 == pytest.approx(bf16, rel=1e-6)
    assert found.loss_int4 == pytest.approx(int4, abs=1e-4)
    assert found.whole.mean == pytest.approx(found.loss_int4 - found.loss_bf16, abs=1e-9)
    assert found.whole.low <= found.whole.mean <= found.whole.high


def test_groups_are_whole(found: Sensitivity) -> None:
    assert [cost.name for cost in found.layers] == ["embedding", "layer 0", "layer 1"]
    assert len(found.kinds) == 10 and len(found.parts) == 19
    for costs in (found.layers, found.kinds, found.parts):
        saved = sum(cost.bytes_saved for cost in costs)
        assert saved == sum(cost.bytes_saved for cost in found.layers)
    embedding = (found.layers[0], found.kinds[0], found.parts[0])
    assert len({(each.alone, each.last) for each in embedding}) == 1  # the same question thrice


def test_costs_are_differences_of_losses(
    model: Model, batches: list[Batch], found: Sensitivity
) -> None:
    """Of one kind of tensor, put together by hand."""
    rounding = Rounding(model, "unclipped")
    own = [part for part in parts_of(model) if part.kind == "o_proj"]
    with rounding.of(own):
        alone = heldout_loss(model, batches, document_mask=True)
    with rounding.of([part for part in parts_of(model) if part not in own]):
        but = heldout_loss(model, batches, document_mask=True)
    (cost,) = (cost for cost in found.kinds if cost.name == "o_proj")
    assert cost.alone.mean == pytest.approx(alone - found.loss_bf16, abs=2e-6)
    assert cost.last.mean == pytest.approx(found.loss_int4 - but, abs=2e-6)
    assert cost.cost == pytest.approx((cost.alone.mean + cost.last.mean) / 2)


def test_estimates_of_experts_are_gradients_times_errors(
    model: Model, batches: list[Batch]
) -> None:
    """By finite differences of the loss along one expert's rounding error, at both ends."""
    parts = parts_of(model)
    rounding = Rounding(model, "unclipped")
    model.freeze()
    found = estimate_experts(rounding, parts, batches, document_mask=True)
    before = heldout_loss(model, batches, document_mask=True)
    layer, expert = 1, 4
    own = [part for part in expert_parts(parts) if part.layer == layer]
    it = (mx.arange(7) == expert)[:, None, None]
    step = 0.2

    def moved(by: float, others: bool) -> float:
        def weight(part, bf16, int4):  # type: ignore[no-untyped-def]
            base = int4 if others else bf16
            return base + it * (by * (int4 - bf16)) if part in own else base

        with rounding.of(parts, weight):
            return document_losses(model, batches, document_mask=True).mean

    slopes = [(moved(step, others) - moved(-step, others)) / (2 * step) for others in (False, True)]
    assert found.first_order[layer, expert] == pytest.approx(slopes[0], rel=0.1, abs=3e-6)
    assert found.share[layer, expert] == pytest.approx(sum(slopes) / 2, rel=0.1, abs=3e-6)
    assert found.ranked()[0] == np.unravel_index(found.share.argmax(), found.share.shape)
    # The model is as it was.
    assert heldout_loss(model, batches, document_mask=True) == before


def test_the_costliest_experts_are_measured(found: Sensitivity) -> None:
    assert found.estimates is not None
    assert found.estimates.share.shape == (2, 7)
    shares = [each.share for each in found.experts]
    assert len(shares) == 3 and shares == sorted(shares, reverse=True)
    assert shares[0] == found.estimates.share.max()
    for each in found.experts:
        assert each.alone.mean == pytest.approx(each.first_order, abs=0.3 * abs(each.share) + 2e-4)


def test_suggestion_keeps_its_budget_and_is_measured(found: Sensitivity) -> None:
    (mix,) = found.suggestions
    assert mix.nbytes <= mix.budget < found.bf16_bytes
    kept = sum(c.bytes_saved for c in found.parts if c.name in mix.kept)
    assert mix.nbytes == found.int4_bytes + kept
    assert mix.loss == pytest.approx(mix.loss_bf16 + mix.measured.mean)
    assert mix.loss == pytest.approx(mix.predicted, abs=0.02)


def test_suggestion_is_measured_on_other_documents(
    model: Model, batches: list[Batch], found: Sensitivity
) -> None:
    """Every second one; with exactly its tensors rounded."""
    (mix,) = found.suggestions
    parts = parts_of(model)
    rounded = [part for part in parts if part.name not in mix.kept]
    for expected, chosen in ((mix.loss_bf16, []), (mix.loss, rounded), (mix.loss_int4, parts)):
        with Rounding(model, "unclipped").of(chosen):
            losses = document_losses(model, batches, document_mask=True)
        half = losses.sums[1::2].sum() / losses.targets[1::2].sum()
        assert expected == pytest.approx(half, rel=1e-6)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": f"def f{i}(text): return text.strip()"}) for i in range(40)]
    path.write_text("\n".join(lines))
    return path


def test_command(
    bf16_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, image = tmp_path / "figures.json", tmp_path / "costs.png"
    words = ["sensitivity", str(bf16_folder), "--data", str(data), "--tokens", "64"]
    more = ["--experts", "2", "--budget", "200kB", "--picture", str(image), "--json", str(figures)]
    assert main([*words, *more]) == 0
    said = capsys.readouterr().out
    for text in ("all in INT4", "layer 1", "experts.down_proj", "Under 200.0 kB", "expert "):
        assert text in said
    record = json.loads(figures.read_text())
    assert record["suggestions"][0]["budget"] == 200_000
    assert len(record["estimates"]["share"][0]) == 7
    assert image.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--budget", "1kB"], "even INT4 takes more"),
        (["--budget", "1GB"], "all of it fits in BF16"),
        (["--tokens", "0"], "--tokens is 0; it must be at least 1"),
        (["--experts", "-1"], "--experts is -1; it must be at least 0"),
        (["--data", "nowhere.jsonl"], "there is no file or folder nowhere.jsonl"),
        (["--picture", "nowhere/a.png"], "not a file in a folder that exists"),
    ],
)
def test_mistakes(
    change: list[str], said: str, bf16_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [] if "--data" in change else ["--data", str(data)]
    assert main(["sensitivity", str(bf16_folder), *where, *change]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_int4_checkpoints_are_refused(
    int4_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sensitivity", str(int4_folder), "--data", str(data)]) == 2
    assert "is in INT4 already" in capsys.readouterr().err
