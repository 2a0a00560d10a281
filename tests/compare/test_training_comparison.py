"""`compare --backward` and `--train-steps`: right models pass, wrong ones do not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mobilemoe_mlx.capacity import within_capacity  # noqa: E402
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint  # noqa: E402
from mobilemoe_mlx.cli.main import main  # noqa: E402
from mobilemoe_mlx.compare import backward, steps, torch_training  # noqa: E402
from mobilemoe_mlx.compare.backward import compare_gradients  # noqa: E402
from mobilemoe_mlx.compare.steps import compare_steps, read_batches  # noqa: E402
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model  # noqa: E402
from mobilemoe_mlx.compare.training_tables import gradients_as_text, steps_as_text  # noqa: E402
from mobilemoe_mlx.config import ModelArgs  # noqa: E402
from mobilemoe_mlx.errors import UserError  # noqa: E402


@pytest.fixture(scope="module")
def tokens(tiny_args: ModelArgs) -> list[int]:
    return np.random.default_rng(3).integers(tiny_args.vocab_size, size=33).tolist()


@pytest.fixture(scope="module")
def batches(tiny_args: ModelArgs) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.integers(tiny_args.vocab_size, size=(2, 17), dtype=np.int32) for _ in range(4)]


@pytest.mark.parametrize("layout", ["bf16", "int4"])
@pytest.mark.parametrize("quantize", [False, True])
def test_every_gradient_is_pytorchs(request, tokens, layout, quantize):
    folder = request.getfixturevalue(f"{layout}_folder")
    report = compare_gradients(folder, tokens, quantize=quantize)
    trained = {n for n, _ in torch_training.trained(load_torch_model(folder))}
    assert {p.name for p in report.parameters} == trained
    assert report.passed
    assert report.parameters[0].error.max == max(p.error.max for p in report.parameters)
    assert report.mlx_loss == pytest.approx(report.torch_loss, rel=1e-5)
    assert [row.layer for row in report.layers()] == [0, 1, None]


@pytest.mark.parametrize("quantize", [False, True])
def test_gradients_where_experts_are_full(bf16_folder, tokens, quantize, monkeypatch):
    report = compare_gradients(bf16_folder, tokens, quantize=quantize, capacity_factor=1.0)
    assert report.passed and 0 < report.dropped < 1
    assert f"capacity factor 1 ({report.dropped:.1%} dropped)" in gradients_as_text(report)
    roomy = compare_gradients(bf16_folder, tokens, quantize=quantize, capacity_factor=100.0)
    dropless = compare_gradients(bf16_folder, tokens, quantize=quantize)
    assert roomy.dropped == 0 and roomy.mlx_loss == dropless.mlx_loss != report.mlx_loss
    # The last tokens in place of the first.
    monkeypatch.setattr(
        "mobilemoe_mlx.model.within_capacity",
        lambda experts, *rest: within_capacity(experts[:, ::-1], *rest)[:, ::-1],
    )
    assert not compare_gradients(bf16_folder, tokens, capacity_factor=1.0).passed


def test_half_precision_is_judged_by_the_whole_gradient(bf16_folder, tokens):
    report = compare_gradients(bf16_folder, tokens, dtype="bfloat16", torch_dtype="float32")
    assert report.tolerance.measure == "whole"
    assert 1e-4 < report.whole < report.tolerance.value
    assert "without --dtype" not in gradients_as_text(report)
    beyond = dataclasses.replace(report, tolerance=report.tolerance._replace(value=1e-4))
    assert "shows in float32, without --dtype" in gradients_as_text(beyond)


def test_a_wrong_weight_is_seen_and_named(bf16_folder, tokens, monkeypatch):
    def spoilt(folder: Path) -> torch.nn.Module:
        model = load_torch_model(folder)
        with torch.no_grad():
            model.model.layers[1].self_attn.o_proj.weight *= 1.01
        return model

    monkeypatch.setattr(backward, "load_torch_model", spoilt)
    report = compare_gradients(bf16_folder, tokens)
    assert not report.passed
    assert "BEYOND" in gradients_as_text(report)


def test_another_rounding_is_seen(bf16_folder, tokens, monkeypatch):
    def paper(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.detach().unflatten(-1, (-1, 32))
        scale = (groups.abs().amax(-1, True) / 7.5).half().float()
        return ((groups / scale).round().clamp(-8, 7) * scale).flatten(-2)

    monkeypatch.setattr(torch_training, "_int4", paper)
    assert not compare_gradients(bf16_folder, tokens, quantize=True).passed


@pytest.mark.parametrize(("quantize", "capacity"), [(False, None), (True, None), (False, 1.0)])
def test_both_train_alike(bf16_folder, batches, quantize, capacity):
    report = compare_steps(bf16_folder, batches, quantize=quantize, capacity_factor=capacity)
    assert report.passed and report.parting is None
    assert len(report.steps) == len(batches)
    assert all(s.weight_distance < 1e-3 and s.same_experts == 1 for s in report.steps)
    norms = [(s.mlx_grad_norm, s.torch_grad_norm) for s in report.steps]
    np.testing.assert_allclose(*zip(*norms, strict=True), rtol=1e-3)
    assert "same experts throughout" in steps_as_text(report)
    limit = f", capacity factor 1 ({report.dropped:.1%} dropped), in float32"
    assert (limit in steps_as_text(report)) == (0 < report.dropped < 1) == (capacity is not None)


def test_the_first_difference_is_named(bf16_folder, batches, monkeypatch):
    original = steps.TorchTrainer

    def unbalanced(*args, bias_update_rate, **settings):
        return original(*args, bias_update_rate=-0.3, **settings)

    monkeypatch.setattr(steps, "TorchTrainer", unbalanced)
    report = compare_steps(bf16_folder, batches)
    parting = report.parting
    assert parting is not None and parting.step == 2  # the first step moves the biases
    assert parting.first_flip is not None and parting.same_experts < 1
    assert "They part in step 2" in steps_as_text(report)


def test_short_texts_are_read_again(tmp_path, tokenizer_folder):
    from mobilemoe_mlx.tokenizer import load_tokenizer

    path = tmp_path / "short.txt"
    path.write_text("import os")
    read = read_batches(path, load_tokenizer(tokenizer_folder), 2, 2, 9)
    assert [b.shape for b in read] == [(2, 10), (2, 10)]
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="nothing to train on"):
        read_batches(tmp_path / "empty.txt", load_tokenizer(tokenizer_folder), 1, 1, 9)


def test_the_command_writes_both_reports(bf16_folder, tmp_path, capsys):
    command = ["compare", str(bf16_folder), "--output", str(tmp_path / "out")]
    assert main([*command, "--backward", "--tokens", "9"]) == 0
    assert "the worst:" in capsys.readouterr().out
    assert main([*command, "--train-steps", "1", "--context", "8", "--data", __file__]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"gradients.json", "gradients.png", "steps.json", "steps.png"}
    assert json.loads((tmp_path / "out" / "steps.json").read_text())["passed"] is True


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--qat"], "--qat belongs to --backward"),
        (["--capacity-factor", "1.5"], "--capacity-factor belongs to --backward"),
        (["--backward", "--capacity-factor", "0"], "give a number above 0"),
        (["--data", "x.txt"], "--data belongs to"),
        (["--train-steps", "2"], "needs texts to train on"),
        (["--train-steps", "0", "--data", __file__], "at least 1 step"),
        (["--train-steps", "1", "--data", __file__, "--context", "9999"], "takes 1 to"),
        (["--train-steps", "1", "--data", "nowhere.txt"], "nowhere.txt"),
        (["--backward", "--tokens", "1"], "no next one"),
        (["--backward", "--dtype", "float16"], "float32 or bfloat16"),
        (["--backward", "--data", __file__], "--data belongs to --train-steps"),
        (["--context", "9"], "--context belongs to --train-steps"),
        (["--backward", "--context", "9"], "--context belongs to --train-steps"),
        (["--backward", "--greedy-tokens", "0"], "--backward does not read --greedy-tokens"),
        (["--train-steps", "1", "--data", __file__, "--seed", "0"], "does not read --seed"),
        (["--train-steps", "1", "--data", __file__, "--prompt", ""], "does not read --prompt"),
        (["--train-steps", "1", "--data", __file__, "--dtype", "bfloat16"], "in float32"),
    ],
)
def test_mistakes_are_sentences(bf16_folder, capsys, options, sentence):
    assert main(["compare", str(bf16_folder), *options]) == 2
    assert sentence in capsys.readouterr().err


def test_a_dense_model_has_no_capacity(tmp_path, tiny_args, capsys):
    sizes = {"num_local_experts": 0, "num_experts_per_tok": 0, "intermediate_size": 0}
    args = dataclasses.replace(tiny_args, **sizes)
    write_random_checkpoint(tmp_path / "dense", args, seed=1, quantized=False)
    command = ["compare", str(tmp_path / "dense"), "--backward", "--tokens", "4"]
    assert main([*command, "--capacity-factor", "1.5"]) == 2
    assert "dense and has no experts that could be full: leave out" in capsys.readouterr().err
    assert main(command) == 0
