"""`mobilemoe compare A B`: the figures of every kind of pair, a planted difference, mistakes."""

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
pytest.importorskip("onnxruntime")

import checkpoint_files  # noqa: E402
import matplotlib.image  # noqa: E402
from small_model import small_args  # noqa: E402
from varied_model import write_varied  # noqa: E402

from mobilemoe_mlx.checkpoint.load_save import load_model  # noqa: E402
from mobilemoe_mlx.cli.main import main  # noqa: E402
from mobilemoe_mlx.compare.compare_models import compare_models  # noqa: E402
from mobilemoe_mlx.compare.comparison import Comparison, LayerParting  # noqa: E402
from mobilemoe_mlx.compare.greedy import compare_choices  # noqa: E402
from mobilemoe_mlx.compare.table import as_text  # noqa: E402
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model  # noqa: E402
from mobilemoe_mlx.engines import open_engine  # noqa: E402
from mobilemoe_mlx.errors import UserError  # noqa: E402
from mobilemoe_mlx.export.coreml.options import ExportOptions  # noqa: E402
from mobilemoe_mlx.export.coreml.package import export_coreml  # noqa: E402
from mobilemoe_mlx.export.onnx.folder import export_onnx  # noqa: E402
from mobilemoe_mlx.export.onnx.options import ExportOptions as ONNXOptions  # noqa: E402
from mobilemoe_mlx.verify.coreml.core_ops_package import CoreOpsPackage  # noqa: E402

pytestmark = pytest.mark.usefixtures("kernel_is_built")

ARGS = small_args(vocab_size=480, bos_token_id=1, eos_token_id=(2,))
CONTEXT = 32
TOKENS = np.random.default_rng(0).integers(ARGS.vocab_size, size=20).tolist()
GREEDY = 4

Models = dict[str, Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Models:
    """A checkpoint, another of its kind, and its exports; do not write into them."""
    root = tmp_path_factory.mktemp("sides")

    def other(tensors: checkpoint_files.Tensors) -> None:
        for name in tensors:
            if name.endswith("layers.1.feed_forward.experts.down_scale"):
                tensors[name] = tensors[name] * 1.25

    made = {
        "checkpoint": write_varied(root / "checkpoint", ARGS, tokenizer_folder),
        "other": write_varied(root / "other", ARGS, edit=other),
    }
    for form in ("fused", "portable"):
        options = ONNXOptions(form=form, context=CONTEXT)
        made[form] = export_onnx(made["checkpoint"], root / form, options).folder
    for logits in ("last", "all"):
        choices = ExportOptions(context=CONTEXT, prefill_block=8, logits=logits)
        package = root / f"{logits}.mlpackage"
        made[logits] = export_coreml(made["checkpoint"], package, choices).package
    custom = ExportOptions(context=CONTEXT, prefill_block=8, moe="custom-layer")
    package = root / "custom.mlpackage"
    made["custom"] = export_coreml(made["checkpoint"], package, custom).package
    return made


def own_logits(path: Path, engine: str, tokens: list[int]) -> np.ndarray:
    """What `compare` must have compared, by the way that users run each engine."""
    name, _, precision = engine.partition(":")
    if name == "torch":
        with torch.no_grad():
            model = load_torch_model(path, precision or "float32")
            return model(torch.tensor([tokens])).logits[0].float().numpy()
    if name == "mlx":
        model = load_model(path, dtype=getattr(mx, precision or "float32"))
        return np.array(model(mx.array([tokens]))[0].astype(mx.float32))
    options = {"precision": precision} if precision else {}
    return open_engine(path, name, **options).session().feed(tokens, all_logits=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    return exact - np.logaddexp.reduce(exact, axis=-1, keepdims=True)


def check_figures(report: Comparison, a: np.ndarray, b: np.ndarray, slack: float = 0.0) -> None:
    """The figures are those of logits `a` and `b`, whose errors may differ by `slack`."""
    p, q = log_softmax(b), log_softmax(a)
    kl, reverse = (np.exp(p) * (p - q)).sum(-1), (np.exp(q) * (q - p)).sum(-1)
    near = {"rel": 1e-3, "abs": slack}
    assert report.logits.max == pytest.approx(np.abs(a - b).max() / np.abs(b).max(), **near)
    mean = np.abs(a - b).mean() / np.sqrt(np.square(b).mean())
    assert report.logits.mean == pytest.approx(mean, **near)
    assert report.kl_mean == pytest.approx(kl.mean(), rel=1e-2, abs=slack + 1e-12)
    assert report.kl_max == pytest.approx(kl.max(), rel=1e-2, abs=slack + 1e-12)
    assert report.kl_reverse_mean == pytest.approx(reverse.mean(), rel=1e-2, abs=slack + 1e-12)
    assert report.kl_reverse_max == pytest.approx(reverse.max(), rel=1e-2, abs=slack + 1e-12)
    assert report.kl_by_token == pytest.approx(kl, rel=1e-2, abs=slack + 1e-12)
    assert report.top1_agreement == np.mean(a.argmax(-1) == b.argmax(-1))
    fives = [np.argsort(-logits, axis=-1)[:, :5] for logits in (a, b)]
    common = [len({*x} & {*y}) for x, y in zip(*fives, strict=True)]
    assert report.top5_overlap == pytest.approx(np.mean(common) / 5)


@pytest.mark.parametrize(
    ("a", "engine_a", "b", "engine_b", "shows"),
    [
        ("checkpoint", "mlx", "checkpoint", "torch", "all"),
        ("checkpoint", "mlx", "other", "mlx", "all"),
        ("checkpoint", "mlx", "checkpoint", "cpu:int8", "experts"),
        ("checkpoint", "cpu:int16", "other", "torch", "experts"),
        ("checkpoint", "cpu:int8", "checkpoint", "cpu:exact", "experts"),
        ("portable", "onnx", "other", "mlx", "all"),
        ("fused", "onnx", "other", "mlx", "hidden"),
        ("fused", "onnx:int8", "fused", "onnx:exact", "hidden"),
        ("fused", "onnx", "checkpoint", "cpu:int8", "nothing"),
    ],
)
def test_figures_are_those_of_the_engines(
    models: Models, a: str, engine_a: str, b: str, engine_b: str, shows: str
) -> None:
    report = compare_models(
        models[a],
        models[b],
        engine_a=engine_a,
        engine_b=engine_b,
        num_tokens=len(TOKENS),
        greedy_tokens=GREEDY,
    )
    # Engines give the same bits however they are fed, but for float32's last places.
    check_figures(
        report,
        own_logits(models[a], engine_a, TOKENS),
        own_logits(models[b], engine_b, TOKENS),
        slack=2e-6,
    )
    greedy_a, greedy_b = (
        greedy(models[m], engine, TOKENS) for m, engine in ((a, engine_a), (b, engine_b))
    )
    alike = next((i for i in range(GREEDY) if greedy_a[i] != greedy_b[i]), GREEDY)
    assert report.greedy is not None and report.greedy.asked == GREEDY
    assert list(report.greedy.tokens) == greedy_a[:alike]
    if report.greedy.parting is not None:
        parted = report.greedy.parting.token_a, report.greedy.parting.token_b
        assert parted == (greedy_a[alike], greedy_b[alike])
    assert report.is_judged == (a == b)
    assert len(report.layers) == ARGS.num_hidden_layers
    for layer in report.layers:
        assert (layer.hidden is not None) == (shows in ("all", "hidden"))
        assert (layer.selection_agreement is not None) == (shows in ("all", "experts"))
        assert (layer.score_error is not None) <= (shows == "all")
    assert (shows == "all") == (not report.not_compared)


def greedy(path: Path, engine: str, tokens: list[int]) -> list[int]:
    """The text as an engine decodes it; PyTorch, which has no cache, computes it anew each time."""
    name, _, precision = engine.partition(":")
    text, session = list(tokens), None
    if name != "torch":
        options = {"precision": precision} if precision else {}
        session = open_engine(path, name, **options).session()
        last = session.feed(text)[-1]
    for _ in range(GREEDY):
        if session is None:
            last = own_logits(path, engine, text)[-1]
        text.append(int(last.argmax()))
        if session is not None:
            last = session.feed(text[-1:])[-1]
    return text[len(tokens) :]


def test_routing_is_counted_as_the_cpu_engine_tells_it(models: Models) -> None:
    report = compare_models(
        models["other"], models["checkpoint"], engine_b="cpu:exact", num_tokens=len(TOKENS)
    )
    chosen = []
    for name in ("other", "checkpoint"):
        session = open_engine(models[name], "cpu", precision="exact").session()
        session.feed(TOKENS)
        chosen.append(session.experts(len(TOKENS)))
    sets = [[{*token} for token in layer] for layer in np.concatenate(chosen).tolist()]
    ours, theirs = sets[: ARGS.num_hidden_layers], sets[ARGS.num_hidden_layers :]
    differing = [
        sum(x != y for x, y in zip(*pair, strict=True)) for pair in zip(ours, theirs, strict=True)
    ]
    assert [layer.tokens_differing for layer in report.layers] == differing
    assert differing[:2] == [0, 0] and differing[2] > 0  # the planted difference is in layer 1
    assert report.parting == LayerParting(2, "experts")  # where it shows in the routing
    assert report.layers[2].flip_margin is not None  # by A's scores, which alone are shown


@pytest.mark.parametrize(
    ("package", "engine"),
    [
        ("last", "coreml"),
        ("last", "coreml:float32"),
        ("all", "coreml:declared"),
        ("custom", "coreml"),
    ],
)
def test_core_ml_packages(models: Models, package: str, engine: str) -> None:
    report = compare_models(
        models[package],
        models["other"],
        engine_a=engine,
        num_tokens=len(TOKENS),
        greedy_tokens=GREEDY,
    )
    rounds = report.a.precision == "declared"
    assert rounds == (engine != "coreml:float32" and package != "custom")
    exact = own_logits(models["checkpoint"], "torch", TOKENS)
    other = own_logits(models["other"], "mlx", TOKENS)
    if rounds:  # float16 moves the logits by 4e-4 of their size, and other experts by a tenth
        mean = np.abs(exact - other).mean() / np.sqrt(np.square(other).mean())
        assert mean > 0.05
        assert report.logits.mean == pytest.approx(mean, abs=2e-3)
    else:
        check_figures(report, exact, other, slack=2e-6)
        assert report.parting == LayerParting(1, "hidden")
    assert not report.not_compared
    assert report.tokens == len(report.kl_by_token) == len(TOKENS)


def test_a_planted_difference_is_named(models: Models) -> None:
    """The experts of layer 1 alone are others."""
    report = compare_models(models["checkpoint"], models["other"], num_tokens=20)
    first, second, third = report.layers
    assert first.hidden is not None and first.hidden.max == 0.0
    assert second.hidden is not None and second.hidden.max > 1e-3
    assert (first.first_flips, second.first_flips) == (0, 0)
    assert third.first_flips
    assert report.parting == LayerParting(1, "hidden")
    text = as_text(report)
    assert "they part in layer 1: its residual stream has the max error" in text
    assert "two models are judged by --tolerance alone" in text


def test_a_planted_router_is_named(models: Models, tmp_path: Path) -> None:
    def edit(tensors: checkpoint_files.Tensors) -> None:
        name = "model.layers.1.feed_forward.router.weight"
        tensors[name] = tensors[name].flip(0)

    other = write_varied(tmp_path / "other", ARGS, edit=edit)
    report = compare_models(models["checkpoint"], other, num_tokens=20, greedy_tokens=0)
    assert report.parting == LayerParting(1, "experts")
    assert report.greedy is None
    layer = report.layers[1]
    assert f"they part in layer 1: {layer.first_flips} of 20 tokens go to" in as_text(report)


def test_a_model_is_itself(models: Models) -> None:
    report = compare_models(models["checkpoint"], models["checkpoint"], num_tokens=20)
    assert report.logits.max == report.kl_max == report.kl_reverse_max == 0.0
    assert report.top1_agreement == report.top5_overlap == 1.0
    assert report.greedy is not None and report.greedy.parting is None
    assert report.passed and report.is_judged and report.parting is None


def test_models_of_other_shapes_are_compared_at_their_ends(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deeper = write_varied(
        tmp_path / "deeper",
        dataclasses.replace(small_args(num_hidden_layers=4), vocab_size=480, bos_token_id=1),
    )
    call = ["compare", str(models["checkpoint"]), str(deeper), "--tokens", "20"]
    assert main([*call, "--output", str(tmp_path / "out")]) == 0
    assert "not compared: layers: A has 3, B 4" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["layers"] == [] and written["parting"] is None
    assert len(written["kl_by_token"]) == written["tokens"] == 20
    assert written["is_judged"] is False and written["passed"] is True
    picture = matplotlib.image.imread(tmp_path / "out" / "compare.png")
    assert picture.shape[0] > 400 and picture.std() > 0
    a, b = (own_logits(path, "mlx", TOKENS) for path in (models["checkpoint"], deeper))
    report = compare_models(models["checkpoint"], deeper, num_tokens=20, greedy_tokens=0)
    check_figures(report, a, b, slack=2e-6)


def test_other_experts_and_widths(models: Models, tmp_path: Path) -> None:
    wider = write_varied(
        tmp_path / "wider",
        small_args(vocab_size=480, bos_token_id=1, hidden_size=96, num_local_experts=10),
    )
    report = compare_models(models["checkpoint"], wider, num_tokens=20, greedy_tokens=0)
    assert report.not_compared == (
        "the residual stream: 64 wide in A, 96 in B",
        "the routing: a token goes to 4 of 12 experts in A, 4 of 10 in B",
    )
    assert all(layer.hidden is layer.selection_agreement is None for layer in report.layers)
    assert report.tokens_same_routing is None


def test_exit_status_and_json(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["compare", str(models["checkpoint"]), str(models["other"]), "--tokens", "20"]
    assert main([*call, "--json"]) == 0  # beyond what rounding explains, which is no verdict
    written = json.loads(capsys.readouterr().out)
    assert written["a"] == {
        "model": str(models["checkpoint"]),
        "engine": "mlx",
        "precision": "float32",
        "label": "MLX float32",
    }
    assert written["parting"] == {"layer": 1, "seen_by": "hidden"}
    assert main([*call, "--tolerance", "1e-3"]) == 1
    assert "BEYOND the tolerance 0.001" in capsys.readouterr().out
    again = ["compare", str(models["checkpoint"]), "--engine-b", "cpu:int8", "--tokens", "20"]
    assert main(again) == 0
    assert "within the tolerance" in capsys.readouterr().out


def test_texts_are_read_by_the_tokenizer_that_is_there(models: Models) -> None:
    """B's, since A has none; a package's is in the folder beside it."""
    for a in ("other", "last"):
        report = compare_models(models[a], models["checkpoint"], prompt="def f(x):")
        assert 2 < report.tokens < 12


def test_a_package_without_its_resources_has_no_tokenizer(models: Models, tmp_path: Path) -> None:
    package = tmp_path / "alone.mlpackage"
    shutil.copytree(models["all"], package)
    with pytest.raises(UserError, match=r"alone.mlpackage is without alone-resources, the folder"):
        compare_models(package, models["other"], prompt="def")
    assert compare_models(package, models["other"], num_tokens=2, greedy_tokens=0).tokens == 2


def test_a_text_from_a_file(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("def f(x):\n")
    call = ["compare", str(models["checkpoint"]), "--engine-b", "cpu:exact", "--json"]
    tokens = set()
    for text in (["--prompt", "def f(x):"], ["--prompt-file", str(tmp_path / "text")]):
        assert main([*call, *text]) == 0
        tokens.add(json.loads(capsys.readouterr().out)["tokens"])
    assert len(tokens) == 1
    assert main([*call, "--prompt-file", "no/such/file"]) == 2
    assert "no/such/file cannot be read" in capsys.readouterr().err


def test_the_default_length_leaves_room_for_the_greedy_text(models: Models) -> None:
    report = compare_models(models["fused"], models["checkpoint"], greedy_tokens=8)
    assert report.tokens == CONTEXT - 8
    assert report.greedy is not None and report.greedy.asked == 8
    full = compare_models(models["fused"], models["checkpoint"], num_tokens=CONTEXT)
    assert full.greedy is None


def test_a_long_evaluation_is_announced(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    call = {"num_tokens": 2, "greedy_tokens": 1, "say": told.append}
    compare_models(models["last"], models["checkpoint"], **call)
    assert told == []
    monkeypatch.setattr(CoreOpsPackage, "seconds", lambda *call: 40.0)
    compare_models(models["last"], models["checkpoint"], **call)
    assert told == ["this takes about 2 minutes, by its size, on two processor cores"]


def test_choices_are_told_with_how_narrow_they_were() -> None:
    a = [np.array([0.0, 3.0, 1.0]), np.array([2.0, 1.5, 0.0]), np.array([9.0, 0.0, 0.0])]
    b = [np.array([0.0, 2.0, 1.0]), np.array([2.0, 2.25, 0.0])]
    found = compare_choices(a, b, 3, "xyz".__getitem__)
    assert found.tokens == (1,) and found.parting is not None
    parting = found.parting
    assert (parting.token_a, parting.token_b) == (0, 1)
    assert (parting.lead_a, parting.lead_b) == (0.5, 0.25)
    assert (parting.piece_a, parting.piece_b) == ("x", "y")
    assert compare_choices(a, a, 3, "xyz".__getitem__).tokens == (1, 0, 0)


@pytest.mark.parametrize(
    ("a", "b", "options", "sentence"),
    [
        ("checkpoint", None, {"engine_a": "cup"}, r"no engine 'cup' \(did you mean 'cpu'"),
        (
            "checkpoint",
            None,
            {"engine_a": "cpu:int9"},
            "no precision 'int9' \\(did you mean 'int8'",
        ),
        ("checkpoint", None, {"engine_b": "onnx"}, "or export it first, by `mobilemoe export onnx"),
        ("checkpoint", None, {"engine_b": "coreml"}, "first, by `mobilemoe export coreml"),
        ("fused", None, {}, "an ONNX export: say what to compare it with"),
        ("last", None, {}, "a Core ML package: say what to compare it with"),
        ("fused", "checkpoint", {"engine_a": "mlx"}, "which the engine 'mlx' does not compute"),
        ("portable", "checkpoint", {"engine_a": "onnx:int8"}, "only fused folders take another"),
        ("custom", "checkpoint", {"engine_a": "coreml:declared"}, "in float32 alone"),
        ("fused", "checkpoint", {"num_tokens": 33}, r"33 tokens; .*fused takes 1 to 32"),
        ("fused", "checkpoint", {"adapters": [(Path("x"), 1.0)]}, "which takes no adapters"),
        ("last", "checkpoint", {"adapters": [(Path("x"), 1.0)]}, "which takes no adapters"),
        ("checkpoint", None, {"engine_b": "cpu", "adapters": [(Path("x"), 1.0)]}, "no adapters"),
        ("checkpoint", None, {"greedy_tokens": -1}, "-1 greedy tokens: the number must be"),
        ("other", None, {"prompt": "def"}, "has no tokenizer.json"),
    ],
)
def test_mistakes_are_explained(
    models: Models, a: str, b: str | None, options: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        compare_models(models[a], None if b is None else models[b], **options)


def test_float_checkpoints_are_not_for_the_cpu_engine(bf16_folder: Path) -> None:
    with pytest.raises(UserError, match=r"mobilemoe convert .* --quantize"):
        compare_models(bf16_folder, engine_b="cpu")


def test_vocabularies_must_be_the_same(models: Models, tmp_path: Path) -> None:
    short = write_varied(tmp_path / "short", small_args())
    with pytest.raises(UserError, match=r"480 tokens and .*short 96: logits of different"):
        compare_models(models["checkpoint"], short)
    renamed = tmp_path / "renamed"
    shutil.copytree(models["checkpoint"], renamed)
    tokenizer = json.loads((renamed / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = (next(p for p, i in vocabulary.items() if i == token) for token in (300, 301))
    vocabulary[first], vocabulary[second] = 301, 300
    (renamed / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="differ in 2 tokens, the first 300"):
        compare_models(models["checkpoint"], renamed)


@pytest.mark.parametrize(("module", "a"), [("onnxruntime", "fused"), ("onnx", "portable")])
def test_an_extra_that_is_not_there(
    models: Models, module: str, a: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package {module}.*pip install"):
        compare_models(models[a], models["checkpoint"])


def test_training_takes_one_checkpoint(models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([str(models["other"])], ["--engine-b", "cpu"]):
        assert main(["compare", str(models["checkpoint"]), *more, "--backward"]) == 2
        assert "leave out the second model and the engines" in capsys.readouterr().err
