"""A folder for transformers, as its own loaders read it, against MLX and our PyTorch reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from checkpoint_files import assert_same_bits, read, write  # noqa: E402
from mlx_lm.generate import generate_step  # noqa: E402
from small_model import small_args  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402
from transformers.models.auto.modeling_auto import (  # noqa: E402
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)
from varied_model import write_varied  # noqa: E402

from mobilemoe_mlx import load  # noqa: E402
from mobilemoe_mlx.checkpoint.load_save import load_model  # noqa: E402
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint  # noqa: E402
from mobilemoe_mlx.checkpoint.rewrite import convert  # noqa: E402
from mobilemoe_mlx.cli.main import main  # noqa: E402
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model  # noqa: E402
from mobilemoe_mlx.config import ModelArgs, RopeScaling  # noqa: E402

KINDS = ["bf16", "int4"]
_MODULES = "transformers_modules"  # the package of all folders' code
# float32 on both sides; logits relative to the largest.
TOLERANCE = 1e-4
TOKENS = [[5, 6, 7, 300, 41, 8, 9, 77, 5, 6, 123, 200, 13, 14, 15, 16, 17, 400]]


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies a folder's code before it runs it; here, into a temporary folder."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", cache)
        # What another test has loaded is of another folder, and would be taken in its place.
        patch.setattr(sys, "path", [cache, *sys.path])
        for name in [name for name in sys.modules if name.split(".")[0] == _MODULES]:
            patch.delitem(sys.modules, name)
        for mapping in (CONFIG_MAPPING, MODEL_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
            others = {
                key: value
                for key, value in mapping._extra_content.items()
                if value.__module__.split(".")[0] != _MODULES
            }
            patch.setattr(mapping, "_extra_content", others)
        yield


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, tiny_args: ModelArgs, tokenizer_folder: Path
) -> dict[str, Path]:
    """A checkpoint of each layout, the same model, whose greedy texts vary."""
    home = tmp_path_factory.mktemp("sources")
    int4 = write_varied(home / "int4", tiny_args, tokenizer_folder)
    floats = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in load_torch_model(int4).state_dict().items()
    }
    bf16 = write(home / "bf16", floats, tiny_args)
    for path in tokenizer_folder.iterdir():
        (bf16 / path.name).write_bytes(path.read_bytes())
    return {"bf16": bf16, "int4": int4}


@pytest.fixture(scope="module")
def folders(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `convert --to transformers` makes of `sources`, without PyTorch."""
    home = tmp_path_factory.mktemp("transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)  # importing it is an error
        for kind, source in sources.items():
            convert(source, home / kind, to="transformers")
    return {kind: home / kind for kind in sources}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Of so small a model threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def open_folder(folder: Path, **options: Any) -> Any:
    options = {"dtype": torch.float32} | options
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, **options
    ).eval()


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, Any]:
    """The models of `folders` in float32; do not change them."""
    return {kind: open_folder(folder) for kind, folder in folders.items()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, folders: dict[str, Path]) -> Path:
    return folders[kind]


@pytest.fixture
def model(kind: str, models: dict[str, Any]) -> Any:
    return models[kind]


def mlx_logits(folder: Path, tokens: list[list[int]]) -> np.ndarray:
    return np.array(load_model(folder, mx.float32)(mx.array(tokens)))


def distance(measured: Any, reference: Any) -> float:
    """The largest difference, relative to the reference's largest value."""
    measured, reference = (np.asarray(x, np.float64) for x in (measured, reference))
    return float(np.abs(measured - reference).max() / np.abs(reference).max())


def test_logits_are_those_of_mlx(sources: dict[str, Path], kind: str, model: Any) -> None:
    logits = model(torch.tensor(TOKENS)).logits.detach()
    assert distance(logits, mlx_logits(sources[kind], TOKENS)) < TOLERANCE


STRETCHED = RopeScaling(
    factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0
)
FORMS = {
    "dense": {"num_local_experts": 0, "num_experts_per_tok": 0, "intermediate_size": 0},
    "no shared expert": {"intermediate_size_mlp": 0},
    "plain RoPE": {"rope_scaling": None, "rope_theta": 10000.0},
    "blended RoPE": {"rope_scaling": STRETCHED},
    "no norms": {"use_qk_norm": False, "norm_topk_prob": False, "routed_scaling_factor": 1.0},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_model(tmp_path: Path, form: str) -> None:
    args = small_args(num_hidden_layers=2, **FORMS[form])
    write_random_checkpoint(tmp_path / "source", args, seed=4, quantized=form != "dense")
    convert(tmp_path / "source", tmp_path / "out", to="transformers")
    tokens = [[n % args.vocab_size for n in range(3, 200, 5)]]
    logits = open_folder(tmp_path / "out")(torch.tensor(tokens)).logits.detach()
    assert distance(logits, mlx_logits(tmp_path / "source", tokens)) < TOLERANCE


def test_greedy_texts_are_those_of_mlx(sources: dict[str, Path], kind: str, model: Any) -> None:
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": [], "pad_token_id": 0}
    out = model.generate(torch.tensor(TOKENS), **options)
    reference = load_model(sources[kind], mx.float32)
    expected = [t for t, _ in generate_step(mx.array(TOKENS[0]), reference, max_tokens=16)]
    assert out[0, len(TOKENS[0]) :].tolist() == expected
    assert len(set(expected)) > 4  # a text that repeats itself would prove little
    assert model.generate(torch.tensor(TOKENS), use_cache=False, **options).equal(out)


def test_a_cache_changes_nothing(model: Any) -> None:
    tokens = torch.tensor(TOKENS)
    whole = model(tokens, use_cache=False)
    assert whole.cache is None
    parts, cache = [], None
    for piece in tokens.split([7, 1, 10], dim=1):
        output = model(piece, cache=cache)
        parts.append(output.logits)
        cache = output.cache
    assert distance(torch.cat(parts, dim=1).detach(), whole.logits.detach()) < 1e-5
    older = model(tokens[:, -1:], past_key_values=model(tokens[:, :-1]).cache, logits_to_keep=1)
    assert distance(older.logits.detach(), whole.logits[:, -1:].detach()) < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_says_what_its_prompts_say(folder: Path, attention: str) -> None:
    """Padding on the left, with and without position ids, and on the right."""
    model = open_folder(folder, attn_implementation=attention)
    prompts = [TOKENS[0], TOKENS[0][:5], TOKENS[0][6:9]]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": [], "pad_token_id": 0}
    width = len(prompts[0])
    left = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    texts = model.generate(left, attention_mask=mask, **options)[:, width:]
    logits = model(left, attention_mask=mask).logits
    right = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
    padded = model(right, attention_mask=mask.flip(1)).logits
    for row, prompt in enumerate(prompts):
        alone = torch.tensor([prompt])
        assert texts[row].equal(model.generate(alone, **options)[0, len(prompt) :])
        expected = model(alone).logits[0].detach()
        assert distance(logits[row, -len(prompt) :].detach(), expected) < 1e-5
        assert distance(padded[row, : len(prompt)].detach(), expected) < 1e-5
    assert torch.isfinite(logits).all()


def test_loss_and_gradients_are_those_of_the_reference(
    sources: dict[str, Path], folders: dict[str, Path], kind: str
) -> None:
    """Of an INT4 checkpoint those of what is not INT4, and of all once it is expanded."""
    reference = load_torch_model(sources[kind]).requires_grad_(True)
    tokens = torch.tensor(TOKENS)
    logits = reference(tokens).logits
    expected = F.cross_entropy(logits[0, 2:-1], tokens[0, 3:])
    expected.backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    labels = tokens.clone()
    labels[:, :3] = -100
    model = open_folder(folders[kind]).train()
    for expanded in [False, True] if kind == "int4" else [False]:
        if expanded:
            model.dequantize().zero_grad()
        loss = model(tokens, labels=labels).loss
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for name, parameter in model.named_parameters():
            assert distance(parameter.grad, gradients[name]) < TOLERANCE, name
    biases = {name for name in gradients if name.endswith(".expert_bias")}
    assert {name for name, _ in model.named_parameters()} == gradients.keys() - biases


def test_what_is_inside(folder: Path, sources: dict[str, Path], kind: str) -> None:
    """Hidden states, router logits and attention weights."""
    model = open_folder(folder, attn_implementation="eager")
    tokens = torch.tensor(TOKENS)
    asked = {"output_hidden_states": True, "output_router_logits": True, "output_attentions": True}
    output = model(tokens, **asked)
    expected = load_torch_model(sources[kind])(tokens)
    for measured, reference in zip(output.hidden_states[1:-1], expected.hidden[:-1], strict=True):
        assert distance(measured.detach(), reference) < TOLERANCE
    for measured, routing in zip(output.router_logits, expected.routing, strict=True):
        assert distance(measured.detach(), routing.logits) < TOLERANCE
    assert output.hidden_states[0].equal(model.get_input_embeddings()(tokens))
    base = transformers.AutoModel.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    )
    assert (
        distance(base(tokens).last_hidden_state.detach(), output.hidden_states[-1].detach()) < 1e-5
    )
    for weights in output.attentions:  # [batch, heads, query, key]
        assert weights.sum(-1).allclose(torch.ones(weights.shape[:-1]))
        assert not weights.triu(1).any()
    as_tuple = model(tokens, return_dict=False, use_cache=False)
    assert as_tuple[0].equal(output.logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(folder: Path, model: Any, dtype: Any) -> None:
    """Loaded so, and cast so later; INT4's scales stay what they are."""
    tokens = torch.tensor(TOKENS)
    narrow = open_folder(folder, dtype=dtype)
    assert narrow.dtype == dtype
    logits = narrow(tokens).logits
    assert logits.dtype == dtype
    cosine = F.cosine_similarity(logits.float(), model(tokens).logits, dim=-1)
    assert cosine.min() > 0.99
    scales = {n: b for n, b in model.named_buffers() if n.endswith("scale")}
    cast = open_folder(folder).to(dtype)
    for name, buffer in cast.named_buffers():
        if name in scales:
            assert buffer.dtype == torch.float16
            assert buffer.equal(scales[name])
    assert cast(tokens).logits.dtype == dtype


def test_what_it_saves_is_a_checkpoint(
    tmp_path: Path, folder: Path, sources: dict[str, Path], kind: str, model: Any
) -> None:
    """The published tensors again, which everything here reads; F32 where the model is float32."""
    model.save_pretrained(tmp_path / "saved")
    tensors, published = read(tmp_path / "saved"), read(sources[kind])
    assert tensors.keys() == published.keys()
    for name, tensor in published.items():
        assert tensors[name].equal(tensor.to(tensors[name].dtype)), name
        kept = tensor.dtype in (torch.uint8, torch.float16)
        assert tensors[name].dtype == (tensor.dtype if kept else torch.float32), name
    ours = load_model(tmp_path / "saved", mx.float32)
    assert mx.array_equal(ours(mx.array(TOKENS)), load_model(folder, mx.float32)(mx.array(TOKENS)))
    again = open_folder(tmp_path / "saved")
    assert again(torch.tensor(TOKENS)).logits.equal(model(torch.tensor(TOKENS)).logits)


def test_an_expanded_model_is_saved_as_floats(
    tmp_path: Path, folders: dict[str, Path], models: dict[str, Any]
) -> None:
    model = open_folder(folders["int4"]).dequantize()
    logits = model(torch.tensor(TOKENS)).logits
    assert logits.equal(models["int4"](torch.tensor(TOKENS)).logits)
    model.save_pretrained(tmp_path / "saved")
    assert distance(logits.detach(), mlx_logits(tmp_path / "saved", TOKENS)) < TOLERANCE
    with pytest.raises(ValueError, match="no INT4"):
        model.dequantize()


def test_a_new_model_can_be_made(folder: Path) -> None:
    """From a configuration alone, as one is for training from nothing."""
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    for name, parameter in model.named_parameters():
        spread = 0 if name.endswith("norm.weight") else 0.02
        assert parameter.detach().float().std().item() == pytest.approx(spread, rel=0.2), name


def test_the_way_back(
    tmp_path: Path, folder: Path, sources: dict[str, Path], kind: str, capsys: Any
) -> None:
    """`--to published` takes the added files away; `load` and the commands read the folder."""
    convert(folder, tmp_path / "back")
    assert_same_bits(read(tmp_path / "back"), read(sources[kind]))
    assert not list((tmp_path / "back").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "back" / "config.json").read_text())
    load(folder)
    convert(folder, tmp_path / "mlx", to="mlx")
    assert [p.name for p in (tmp_path / "mlx").glob("*.py")] == ["mobilemoe_model.py"]
    assert main(["info", str(folder)]) == 0
    assert main(["compare", str(folder), "--tokens", "8"]) == 0
    generate = ["generate", str(folder), "--prompt", "def", "--max-tokens", "4"]
    assert main(generate) == 0
    assert "weights here" in capsys.readouterr().out


def test_the_command_says_how_to_load(
    tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(sources["bf16"]), str(tmp_path / "out"), "--to", "transformers"]
    assert main([*command, "--quantize"]) == 0
    assert "from_pretrained(" in capsys.readouterr().out
    assert open_folder(tmp_path / "out").config.quantization["format"] == "mobilemoe-int4-g32"
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err


def test_generation_ends_where_ours_does(tmp_path: Path, sources: dict[str, Path]) -> None:
    """transformers reads one file of those that may name an end of an answer."""
    source = tmp_path / "source"
    source.mkdir()
    for path in sources["int4"].iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "generation_config.json").write_text('{"eos_token_id": 7, "temperature": 0.6}')
    convert(source, tmp_path / "out", to="transformers")
    _, tokenizer = load(source)
    model = open_folder(tmp_path / "out")
    assert set(model.generation_config.eos_token_id) == set(tokenizer.eos_token_ids) >= {2, 7}
    assert model.generation_config.temperature == 0.6


def test_other_spellings_of_the_configuration(tmp_path: Path, sources: dict[str, Path]) -> None:
    """A config.json that means the same makes the same folder."""
    source = tmp_path / "source"
    source.mkdir()
    for path in sources["int4"].iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text())
    rope = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
    del config["model_type"], config["layer_types"], config["no_rope_layers"]
    config |= {
        "model_type": "mobilemoe",
        "rope_parameters": {"full_attention": rope},
        "num_experts": config["num_local_experts"],
        "quantization_config": config["quantization"],
    }
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "out", to="transformers")
    logits = open_folder(tmp_path / "out")(torch.tensor(TOKENS)).logits.detach()
    assert distance(logits, mlx_logits(sources["int4"], TOKENS)) < TOLERANCE


def test_angles_at_the_end_of_the_context(model: Any) -> None:
    """To float32's rounding of the result, whatever the position."""
    layers = sys.modules[type(model.model.layers[0]).__module__]
    positions = torch.tensor([[0, 8191]])
    cosines, sines = layers.rotations(positions, [1.0, 0.3])
    exact = np.array([[0.0, 0.0], [8191.0, 8191 * 0.3]])
    assert np.abs(cosines[0, 0].numpy() - np.cos(exact)).max() < 1e-7
    assert np.abs(sines[0, 0].numpy() - np.sin(exact)).max() < 1e-7


def test_of_equal_experts_the_lower_index_is_chosen(models: dict[str, Any]) -> None:
    model = models["bf16"]
    layers = sys.modules[type(model.model.layers[0]).__module__]
    router = layers.MobileMoERouter(type(model.config)())  # 60 experts, of which 4
    torch.nn.init.zeros_(router.weight)
    bias = torch.zeros(60)
    bias[[7, 31]] = 1.0
    _, experts, _ = router(torch.randn(50, router.weight.shape[1]), bias)
    assert experts.equal(torch.tensor([7, 31, 0, 1]).expand(50, 4))


def test_mistakes_are_said(model: Any) -> None:
    tokens = torch.tensor(TOKENS)
    with pytest.raises(ValueError, match=r"it must be \[batch, 18\]"):
        model(tokens, attention_mask=torch.ones(1, 17))
    with pytest.raises(ValueError, match="one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="attn_implementation='eager'"):
        model(tokens, output_attentions=True)
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)
    with pytest.raises(ValueError, match="StaticCache"):
        model(tokens, cache=cache)
    with pytest.raises(ValueError, match="Flash Attention"):
        open_folder(model.config.name_or_path, attn_implementation="flash_attention_2")


_ALONE = """
import json, sys
sys.modules["mobilemoe_mlx"] = None  # importing it is an error
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
out = {}
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    )
    ids = tokenizer("def indent(text):", return_tensors="pt").input_ids
    model.save_pretrained(folder + "-saved")
    again = AutoModelForCausalLM.from_pretrained(
        folder + "-saved", trust_remote_code=True, dtype=torch.float32
    )
    assert again(ids).logits.equal(model(ids).logits)
    out[folder] = {"tokens": ids.tolist(), "logits": model(ids).logits.tolist()}
print(json.dumps(out))
"""


def test_without_this_package(
    tmp_path: Path, folders: dict[str, Path], sources: dict[str, Path]
) -> None:
    """Where only transformers and PyTorch are: the folder's own configuration class is used."""
    command = [sys.executable, "-c", _ALONE, *map(str, folders.values())]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    for (kind, folder), found in zip(
        folders.items(), json.loads(done.stdout).values(), strict=True
    ):
        _, tokenizer = load(folder)
        assert found["tokens"] == [tokenizer.encode("def indent(text):")]
        expected = mlx_logits(sources[kind], found["tokens"])
        assert distance(found["logits"], expected) < TOLERANCE
        assert {p.name for p in Path(f"{folder}-saved").glob("*.py")} == {
            p.name for p in folder.glob("*.py")
        }
    assert "mistake" not in done.stderr and "must be" not in done.stderr


def test_the_evaluation_harness_scores_as_the_reference_does(
    folder: Path, sources: dict[str, Path], kind: str
) -> None:
    """lm-eval's own model of a transformers folder (`pip install 'lm-eval[hf]'`)."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    pairs = [("def indent(text):", "\n    return text"), ("import re", "\nimport sys")]
    harness = HFLM(str(folder), dtype="float32", device="cpu", trust_remote_code=True, batch_size=2)
    scores = harness.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    reference = load_torch_model(sources[kind])
    for (context, continuation), (score, greedy) in zip(pairs, scores, strict=True):
        start = len(harness.tok_encode(context))
        tokens = harness.tok_encode(context + continuation)
        logits = reference(torch.tensor([tokens])).logits[0, start - 1 : -1].log_softmax(-1)
        wanted = torch.tensor(tokens[start:])
        expected = float(logits.gather(1, wanted[:, None]).sum())
        assert score == pytest.approx(expected, rel=TOLERANCE)
        assert greedy == bool(logits.argmax(-1).equal(wanted))
