"""`mobilemoe compare`: its measures, that it passes on the right model and fails on a wrong one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import matplotlib.figure  # noqa: E402
import matplotlib.image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from small_model import small_args  # noqa: E402

from mobilemoe_mlx import files  # noqa: E402
from mobilemoe_mlx.checkpoint.rewrite import convert  # noqa: E402
from mobilemoe_mlx.cli.main import main  # noqa: E402
from mobilemoe_mlx.compare import picture  # noqa: E402
from mobilemoe_mlx.compare.compare_models import compare_models  # noqa: E402
from mobilemoe_mlx.compare.comparison import Comparison, compare_traces  # noqa: E402
from mobilemoe_mlx.compare.side import Side  # noqa: E402
from mobilemoe_mlx.compare.table import as_text  # noqa: E402
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model  # noqa: E402
from mobilemoe_mlx.compare.torch_model import TorchMobileMoE  # noqa: E402
from mobilemoe_mlx.compare.torch_side import trace_torch  # noqa: E402
from mobilemoe_mlx.errors import UserError  # noqa: E402
from mobilemoe_mlx.model import Model  # noqa: E402
from mobilemoe_mlx.numerics.measures import TensorError  # noqa: E402
from mobilemoe_mlx.numerics.tolerance import COMPARE_LIMITS, Limit  # noqa: E402
from mobilemoe_mlx.numerics.values import LayerValues, Trace, trace_mlx  # noqa: E402

ARGS = small_args()
LAYOUTS = ["bf16", "int4"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One random model in both published layouts, written by this file alone."""
    torch.manual_seed(0)
    model = TorchMobileMoE(ARGS).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
        else:
            std = 0.2 if name.endswith("expert_bias") else parameter.shape[-1] ** -0.5
            parameter.normal_(std=std)
    bf16 = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    int4: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("router.weight"):
            int4[name] = tensor
        elif name.endswith(("norm.weight", "expert_bias")):
            int4[name] = tensor.bfloat16()
        else:
            codes, scale = pack_int4(tensor)
            if name.endswith("_proj"):  # experts
                stem = name.removesuffix("_proj")
                int4[f"{stem}_qweight"], int4[f"{stem}_scale"] = codes, scale
            else:
                stem = name.removesuffix(".weight")
                int4[f"{stem}.qweight"], int4[f"{stem}.weight_scale"] = codes, scale
    root = tmp_path_factory.mktemp("checkpoints")
    out = {}
    for layout, tensors in {"bf16": bf16, "int4": int4}.items():
        out[layout] = root / layout
        out[layout].mkdir()
        save_file(tensors, out[layout] / "model.safetensors")
        args = dataclasses.replace(ARGS, quantized=layout == "int4")
        (out[layout] / "config.json").write_text(json.dumps(args.to_dict()))
    return out


def pack_int4(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    groups = tensor.unflatten(-1, (-1, 32))
    scale = (groups.abs().amax(-1) / 7).half()
    codes = (groups / scale.float()[..., None]).round().clamp(-8, 7).flatten(-2).to(
        torch.int32
    ) % 16
    return (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8), scale


def float_model(folder: Path) -> Model:
    """The MLX float model of a BF16 folder, without the package's loader."""
    model = Model(ARGS)
    weights = model.sanitize(mx.load(str(folder / "model.safetensors")))
    model.load_weights([(name, tensor.astype(mx.float32)) for name, tensor in weights.items()])
    return model


def compared(measured: Trace, reference: Trace, limit: Limit) -> Comparison:
    """The report of two traces, as of MLX and PyTorch, judged by `limit`."""
    mlx, pytorch = (
        Side(
            folder=Path("x"),
            engine=engine,
            precision="float32",
            label=label,
            args=ARGS,
            context=256,
            limit=limit,
            tokenizer=Path("x"),
            packages=(),
            load=pytest.fail,
        )
        for engine, label in (("mlx", "MLX float32"), ("torch", "PyTorch float32"))
    )
    return compare_traces(mlx, pytorch, measured, reference)


def test_errors_are_what_the_page_says():
    reference, measured = np.array([[3.0, -4.0]]), np.array([[3.0, -3.0]])
    error = TensorError.between(measured, reference)
    assert error.max == pytest.approx(1 / 4)
    assert error.mean == pytest.approx(0.5 / np.sqrt(12.5))
    assert error.cosine == pytest.approx(21 / (5 * np.sqrt(18)))
    assert TensorError.between(reference, reference) == TensorError(0.0, 0.0, 1.0)


def trace(scores: list[list[float]], logits: np.ndarray) -> Trace:
    """Two equal layers that select two experts a token, by `scores` [tokens, experts]."""
    values = np.array(scores)
    experts = np.argsort(-values, axis=-1)[:, :2]
    return Trace([LayerValues(np.ones((len(values), 4)), values, experts)] * 2, logits)


def test_flips_are_counted_with_their_margin():
    logits = np.random.default_rng(0).normal(size=(3, 5))
    reference = trace([[0.9, 0.5, 0.4], [0.9, 0.5, 0.1], [0.1, 0.2, 0.3]], logits)
    # Token 0: second and third swap. Token 1: the order changes, the set does not.
    measured = trace([[0.9, 0.4, 0.5], [0.5, 0.9, 0.1], [0.1, 0.2, 0.3]], logits)
    result = compared(measured, reference, Limit("max", 0.0))
    layer, again = result.layers
    assert layer.tokens_differing == layer.first_flips == 1
    assert layer.selection_agreement == pytest.approx(5 / 6)
    assert layer.flip_margin == pytest.approx(0.1)
    assert layer.score_error == pytest.approx(0.4)
    # In the next layer the same token is a consequence, and its scores no longer count.
    assert again.tokens_differing == 1 and again.first_flips == 0 and again.flip_margin is None
    assert again.score_error == pytest.approx(0.4)  # token 1's
    assert result.tokens_same_routing == 2
    assert result.passed and result.kl_max == 0.0


def test_divergence_and_top1_match_torch():
    rng = np.random.default_rng(0)
    reference, measured = rng.normal(size=(2, 6, 50))
    scores = [[0.3, 0.2, 0.1]] * 6
    result = compared(trace(scores, measured), trace(scores, reference), Limit("max", 1.0))
    p, q = (torch.tensor(x).log_softmax(-1) for x in (reference, measured))
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert result.kl_mean == pytest.approx(kl.mean().item())
    assert result.kl_max == pytest.approx(kl.max().item())
    assert result.top1_agreement == np.mean(p.argmax(-1).numpy() == q.argmax(-1).numpy())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_agrees(folders: dict[str, Path], layout: str):
    result = compare_models(folders[layout], num_tokens=100)
    assert result.passed and result.tolerance == ("max", 1e-4)
    assert result.logits.max < 1e-5
    assert result.top1_agreement == 1.0
    assert 0 <= result.kl_max < 1e-9
    for layer in result.layers:
        assert layer.selection_agreement == 1.0
        assert layer.hidden.max < 1e-5


@pytest.mark.parametrize("torch_dtype", [None, "float32"])
@pytest.mark.parametrize("layout, dtype", [("int4", "float16"), ("bf16", "bfloat16")])
def test_half_precision_stays_within_its_tolerance(
    folders: dict[str, Path], layout: str, dtype: str, torch_dtype: str | None
):
    result = compare_models(folders[layout], dtype=dtype, torch_dtype=torch_dtype)
    assert result.passed
    assert result.tolerance == COMPARE_LIMITS[dtype]
    assert result.logits.max > 1e-5  # it did run in another type


def test_a_wrong_layer_is_found_where_it_is(folders: dict[str, Path]):
    tokens = list(range(40))
    reference = trace_torch(load_torch_model(folders["bf16"]), tokens)
    model = float_model(folders["bf16"])
    down = model.layers[1].feed_forward.shared_expert.down_proj
    down.weight = down.weight * 1.05
    result = compared(trace_mlx(model, tokens), reference, COMPARE_LIMITS["float32"])
    assert not result.passed
    assert result.layers[0].hidden.max < 1e-5
    assert result.layers[1].hidden.max > 1e-3


def test_not_a_number_does_not_pass(folders: dict[str, Path]):
    tokens = [1, 2, 3]
    good = trace_torch(load_torch_model(folders["bf16"]), tokens)
    bad = dataclasses.replace(good, logits=good.logits * np.nan)
    for measured, reference in ((bad, good), (good, bad)):
        result = compared(measured, reference, Limit("max", 1.0))
        assert not result.passed


def test_a_layer_that_is_not_a_number_does_not_pass_behind_finite_logits():
    logits = np.random.default_rng(0).normal(size=(3, 5))
    good, bad = (trace([[0.9, 0.5, 0.4]] * 3, logits) for _ in range(2))
    bad.layers[1].hidden[2, 0] = np.nan
    result = compared(bad, good, Limit("max", 1.0))
    assert result.logits.max == 0 and not result.passed
    assert "NOT FINITE: layer 0's hidden states of A, MLX" in as_text(result)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["layers"][1]["hidden"] == {
        "max": None,
        "mean": None,
        "cosine": None,
    }


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_damaged_expert_is_refused_where_no_token_meets_it(
    folders: dict[str, Path], tmp_path: Path, wrong: float
):
    shutil.copytree(folders["bf16"], tmp_path / "damaged")
    path = tmp_path / "damaged" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.feed_forward.experts.down_proj"][11, 3, 5] = wrong
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"layers.1.feed_forward.experts.down_proj.* not finite"):
        compare_models(tmp_path / "damaged", num_tokens=1)


def test_the_table_explains_itself(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    assert main(["compare", str(folders["int4"]), "--tokens", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folders['int4']}: MLX float32")
    (head,) = [line for line in lines if line.startswith(" layer")]
    columns = ["max error", "mean error", "cosine", "same experts", "rerouted", "new", "margin"]
    places = [head.index(column) for column in [*columns, "score error"]]
    assert places == sorted(places)
    legend = "\n".join(lines[lines.index("") :])
    assert all(f"\n{column} " in legend for column in [*columns, "score error"])


def test_json_and_picture_are_written(folders: dict[str, Path], tmp_path: Path):
    result = compare_models(folders["int4"], num_tokens=8)
    result.write(tmp_path / "new" / "folder")
    written = json.loads((tmp_path / "new" / "folder" / "compare.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["passed"] and len(written["layers"]) == ARGS.num_hidden_layers
    drawn = matplotlib.image.imread(tmp_path / "new" / "folder" / "compare.png")
    assert drawn.shape[0] > 400 and drawn.std() > 0
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "compare.json",
        "compare.png",
    ]


def test_json_and_picture_appear_together_or_not_at_all(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = compare_models(folders["int4"], num_tokens=2, greedy_tokens=0)
    real = files.write

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".png":
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(UserError, match=r"compare.png could not be written \(No space left"):
        result.write(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_picture_names_layers_and_logits(folders: dict[str, Path]):
    """The points of the logits lie where one more layer would be, which is no layer."""
    result = compare_models(folders["int4"], num_tokens=2, greedy_tokens=0)
    names = {}
    for panel in (picture._errors, picture._experts):
        axes = matplotlib.figure.Figure().subplots()
        panel(axes, result)
        names[panel] = [text.get_text() for text in axes.get_xticklabels()]
    layers = [str(layer) for layer in range(ARGS.num_hidden_layers)]
    assert names == {picture._errors: [*layers, "logits"], picture._experts: layers}
    assert picture._ticks(24) == [0, 3, 6, 9, 12, 15, 18, 21]


def test_what_cannot_be_written_is_told_before_anything_is_compared(
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("mobilemoe_mlx.compare.compare_models.compare_models", None)
    call = ["compare", str(folders["int4"]), "--output", str(tmp_path / "new" / "folder")]
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
        assert main(call) == 2
    assert f"The folder {tmp_path} may not be written to" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(call) == 2
    assert "--output needs matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--engine-a cpu --engine-b cpu:exact --dtype bfloat16", "--dtype bfloat16 is of MLX"),
        ("--engine-a mlx:float16 --engine-b cpu --dtype float32", "no side of this comparison"),
        ("--engine-a cpu --dtype float16 --torch-dtype float32", "--dtype float16 is of MLX"),
        ("--engine-b cpu --torch-dtype float32", "--torch-dtype float32 is of PyTorch"),
        ("--engine-b torch:float32 --torch-dtype float32", "--torch-dtype float32 is of PyTorch"),
    ],
)
def test_a_type_that_no_side_would_compute_in_is_refused(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str], options: str, message: str
):
    assert main(["compare", str(folders["int4"]), "--tokens", "2", *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_command_prints_and_exits_by_the_tolerance(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    call = ["compare", str(folders["bf16"]), "--tokens", "8"]
    assert main([*call, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "within the tolerance 0.0001" in printed
    assert (tmp_path / "compare.json").exists()
    assert main([*call, "--tolerance", "1e-12"]) == 1
    assert "BEYOND" in capsys.readouterr().out


def test_a_prompt_is_tokenised_after_bos(folders: dict[str, Path], tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{index}": index for index in range(ARGS.vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "with_tokenizer"
    shutil.copytree(folders["bf16"], folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w1", "unk_token": "w0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    result = compare_models(folder, prompt="w5 w17 w3")
    assert result.passed and result.tokens == 1 + 3


@pytest.mark.parametrize(
    "layout, options, sentence",
    [
        ("int4", {"dtype": "bfloat16"}, "INT4 checkpoints compute in float32 or float16"),
        ("bf16", {"dtype": "float23"}, "did you mean 'float32'"),
        ("bf16", {"num_tokens": 257}, "has 257 tokens; this model takes 1 to 256"),
        ("bf16", {"num_tokens": 0}, "has 0 tokens"),
        ("bf16", {"num_tokens": -3}, "has -3 tokens"),
        ("bf16", {"seed": -1}, "seed is -1; it must be"),
        ("bf16", {"tolerance": float("nan")}, "tolerance is nan; it must be"),
        ("bf16", {"tolerance": -1.0}, "tolerance is -1.0; it must be"),
        ("bf16", {"tolerance": float("inf")}, "tolerance is inf; it must be"),
    ],
)
def test_mistakes_are_explained(
    folders: dict[str, Path], layout: str, options: dict, sentence: str
):
    with pytest.raises(UserError, match=sentence):
        compare_models(folders[layout], **options)


def test_folders_for_mlx_lm(folders: dict[str, Path], tmp_path: Path):
    for layout in LAYOUTS:
        convert(folders[layout], tmp_path / layout, to="mlx")
    assert compare_models(tmp_path / "bf16", num_tokens=8).passed
    with pytest.raises(UserError, match=r"`mobilemoe convert .*int4 OUTPUT --to published`"):
        compare_models(tmp_path / "int4")
