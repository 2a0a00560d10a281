"""The quickstart end to end, with a few steps per stage."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from small_quickstart import SMALL
from training_fixtures import random_batch

from mobilemoe_mlx import load
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.quickstart.baseline import unigram_loss
from mobilemoe_mlx.quickstart.run import quickstart
from mobilemoe_mlx.quickstart.samples import CODE, DOCUMENTATION, PROMPTS, QUESTION, STAGES
from mobilemoe_mlx.quickstart.text_bytes import bits_per_byte, bytes_per_target, token_bytes
from mobilemoe_mlx.tokenizer import encode_text, load_tokenizer
from mobilemoe_mlx.train.data import open_heldout
from mobilemoe_mlx.train.recipe import load_recipe


@pytest.fixture(scope="module")
def report(quickstart_home: Path) -> Path:
    return quickstart_home / "runs" / "quickstart" / "report.md"


def test_report_tells_everything(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    for heading in ("Data", "Model", "Loss", "INT4", "Expert load", "More samples", "Speed"):
        assert f"\n## {heading}" in text
    for stage in ("pre-train", "mid-train", "SFT", "INT4 QAT"):
        assert f"| {stage} |" in text
    assert "unigram" in text
    for picture in ("losses.png", "expert-load.png"):
        assert f"]({picture})" in text
        assert (report.parent / picture).stat().st_size > 10_000
    numbers = json.loads((report.parent / "training/qat/quantization.json").read_text())
    assert all(f"{numbers[name]:.4f}" in text for name in ("bf16", "qat_int4"))


def test_report_opens_with_what_a_reader_wants(report: Path) -> None:
    """Four numbers and a sample of each kind, before the first heading."""
    opening, _ = report.read_text(encoding="utf-8").split("\n## ", 1)
    for row in ("held-out loss, nats a token (bits a byte)", "cost of INT4", "size", "speed"):
        assert f"\n| {row}" in opening
    for kind in (CODE, DOCUMENTATION, QUESTION):
        first = next(prompt for k, prompt in PROMPTS if k == kind)
        assert opening.count(f"```text\n{first}\n```") == 1


def test_samples_are_of_what_their_stage_trained_on() -> None:
    files = {CODE: "code", DOCUMENTATION: "docs", QUESTION: "qa"}
    recipe = load_recipe("tiny")
    for kind, stage in STAGES.items():
        assert recipe.stages[stage].data.heldout == (f"{files[kind]}.heldout.jsonl",)
    assert STAGES[QUESTION] == list(recipe.stages)[-1]  # the INT4 checkpoint


def test_curves_have_six_points_a_stage() -> None:
    for stage in load_recipe("tiny").stages.values():
        assert len({0, *range(0, stage.steps, stage.evaluate_every), stage.steps}) >= 6


def test_a_wrong_override_is_told_before_anything_is_deleted(report: Path) -> None:
    with pytest.raises(UserError, match="pek_lr"):
        quickstart(report.parent, overrides=["optimizer.pek_lr=1"], overwrite=True)
    assert report.exists()


def test_bytes_of_tokens(report: Path) -> None:
    """The tokens of a text have as many bytes as the text; control tokens have none."""
    tokenizer = load_tokenizer(report.parent / "tokenizer")
    sizes = token_bytes(tokenizer)
    text = "def f(x):\n\treturn '  äö€😀'  # 10\r\n"
    tokens = encode_text(tokenizer, text)
    assert sizes[tokens].sum() == len(text.encode())
    assert sizes[[tokenizer.bos_token_id, *tokenizer.eos_token_ids]].sum() == 0
    batch = random_batch(2, 64, len(tokenizer))
    kept = batch.targets[batch.loss_mask > 0]
    assert bytes_per_target([batch, batch], sizes) == pytest.approx(sizes[kept].mean())
    assert bits_per_byte(2 * math.log(2), 4.0) == pytest.approx(0.5)


def test_the_int4_checkpoint_loads(report: Path) -> None:
    model, tokenizer = load(report.parent / "training" / "qat" / "model")
    assert model.args.quantized
    assert tokenizer.has_chat_template


def test_an_existing_folder_is_kept(report: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--overwrite"):
        quickstart(report.parent)
    (tmp_path / "letters").mkdir()
    with pytest.raises(UserError, match="not the folder of a quickstart"):
        quickstart(tmp_path, overwrite=True)
    assert (tmp_path / "letters").exists()


def test_unigram_loss_by_its_definition(report: Path) -> None:
    folder = report.parent
    recipe = load_recipe(
        "tiny",
        [
            f"tokenizer.path='{folder / 'tokenizer'}'",
            f"data.folder='{folder / 'corpus'}'",
            *SMALL,
        ],
    )
    tokenizer = load_tokenizer(folder / "tokenizer")
    stage = recipe.stages["sft"]
    loss = unigram_loss(recipe, stage, tokenizer)
    # No distribution beats the held-out targets' own frequencies, and a uniform one is worse.
    batches = open_heldout(recipe, stage, tokenizer)
    targets = np.concatenate([b.targets[b.loss_mask > 0] for b in batches])
    frequencies = np.bincount(targets) / len(targets)
    entropy = -sum(p * math.log(p) for p in frequencies if p)
    assert entropy < loss < math.log(recipe.model.vocab_size)
