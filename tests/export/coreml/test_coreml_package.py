"""What is in an export: bit for bit the checkpoint, described, and what an app needs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from coremltools.converters.mil.frontend.milproto.load import load as load_mil
from package_edits import spec_of
from small_model import small_args

from mobilemoe_mlx import int4
from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.checkpoint.rewrite import convert
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.export.coreml.metadata import Credits
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.mil.program import read_package
from mobilemoe_mlx.model import rope_periods
from mobilemoe_mlx.verify.coreml.core_ops_session import CoreOpsSession

OPTIONS = ExportOptions(context=64, prefill_block=16)


@pytest.fixture(scope="module")
def package(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the INT4 fixture; do not write into it."""
    return export_coreml(int4_folder, tmp_path_factory.mktemp("x") / "S.mlpackage", OPTIONS).package


def program_of(package: Path):
    """The program as coremltools reads it back, which shares nothing with our own reader."""
    spec = spec_of(package)
    weights = package / "Data" / "com.apple.CoreML" / "weights"
    return load_mil(spec, spec.specificationVersion, str(weights))


def test_coremltools_reads_every_code_and_scale_back(package: Path, int4_folder: Path) -> None:
    tensors = open_checkpoint(int4_folder).tensors

    def codes(module: str) -> np.ndarray:
        return np.array(int4.unpack(tensors[f"{module}.qweight"].read()))

    def array(name: str) -> np.ndarray:
        tensor = tensors[name].read()
        return np.array(tensor.astype(mx.float32) if tensor.dtype == mx.bfloat16 else tensor)

    layer = "model.layers.1"
    attention, moe = f"{layer}.self_attn", f"{layer}.feed_forward"
    for function in program_of(package).functions.values():
        quantised = {
            op.outputs[0].name: op
            for op in function.operations
            if op.op_type == "constexpr_blockwise_shift_scale"
        }
        constants = {
            op.outputs[0].name: op.outputs[0].val
            for op in function.operations
            if op.op_type == "const"
        }
        for name, modules in {
            "embedding": ["model.embed_tokens"],
            "layers_1_qkv": [f"{attention}.{p}_proj" for p in "qkv"],
            "layers_1_o": [f"{attention}.o_proj"],
            "layers_1_shared_gate_up": [f"{moe}.shared_expert.{p}_proj" for p in ("gate", "up")],
            "layers_1_shared_down": [f"{moe}.shared_expert.down_proj"],
        }.items():
            expected = np.concatenate([codes(m) for m in modules])
            scales = np.concatenate([array(f"{m}.weight_scale") for m in modules])
            assert np.array_equal(np.asarray(quantised[name].data.val, np.int8), expected), name
            scale = np.asarray(quantised[name].scale.val)
            assert scale.dtype == np.float16
            assert scale.tobytes() == scales.tobytes(), name
        for name, source in {
            "layers_1_gate_up_codes": f"{moe}.experts.gate_up_qweight",
            "layers_1_gate_up_scale": f"{moe}.experts.gate_up_scale",
            "layers_1_down_codes": f"{moe}.experts.down_qweight",
            "layers_1_down_scale": f"{moe}.experts.down_scale",
            "layers_1_router": f"{moe}.router.weight",
            "layers_1_expert_bias": f"{moe}.expert_bias",
            "layers_1_input_norm": f"{layer}.input_layernorm.weight",
            "layers_1_moe_norm": f"{layer}.post_attention_layernorm.weight",
            "norm": "model.norm.weight",
        }.items():
            assert np.asarray(constants[name]).tobytes() == array(source).tobytes(), name


def test_both_functions_share_one_weight_file(package: Path) -> None:
    places: dict[str, set[int]] = {}
    for function in spec_of(package).mlProgram.functions.values():
        for op in next(iter(function.block_specializations.values())).operations:
            values = [a.arguments[0].value for a in op.inputs.values()]
            values += list(op.attributes.values())
            for value in values:
                if value.WhichOneof("value") == "blobFileValue" and op.outputs[0].name.startswith(
                    ("layers_", "embedding", "norm", "rope_")
                ):
                    key = f"{op.outputs[0].name} {value.type.tensorType.dataType}"
                    places.setdefault(key, set()).add(value.blobFileValue.offset)
    assert len(places) > 20
    assert all(len(offsets) == 1 for offsets in places.values())


def test_signatures_are_what_the_documentation_says(package: Path) -> None:
    functions = {f.name: f for f in spec_of(package).description.functions}

    def shapes(features) -> dict[str, tuple[int, ...]]:
        return {
            f.name: tuple(f.type.multiArrayType.shape or f.type.stateType.arrayType.shape)
            for f in features
        }

    cache = {"key_cache": (2, 2, 64, 16), "value_cache": (2, 2, 64, 16)}
    assert shapes(functions["prefill"].input) == {
        "tokens": (1, 16),
        "position": (1,),
        "length": (1,),
    }
    assert shapes(functions["decode"].input) == {"tokens": (1, 1), "position": (1,)}
    for function in functions.values():
        assert shapes(function.state) == cache
        assert shapes(function.output) == {"logits": (1, 1, 480)}
        for feature in (*function.input, *function.output, *function.state):
            assert feature.shortDescription


def test_all_logits_on_request(int4_folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(context=32, prefill_block=8, logits="all")
    done = export_coreml(int4_folder, tmp_path / "a.mlpackage", options)
    prefill = {f.name: f for f in spec_of(done.package).description.functions}["prefill"]
    assert [f.name for f in prefill.input] == ["tokens", "position"]
    assert list(prefill.output[0].type.multiArrayType.shape) == [1, 8, 480]


def test_metadata_tells_a_developer_what_it_is(
    int4_folder: Path, tmp_path: Path, package: Path
) -> None:
    metadata = spec_of(package).description.metadata
    assert "INT4" in metadata.shortDescription and "prefill" in metadata.shortDescription
    assert metadata.license == "Not stated by the checkpoint"
    assert json.loads(metadata.userDefined["mobilemoe.quantization"])["group_size"] == 32
    assert json.loads(metadata.userDefined["mobilemoe.config"])["num_hidden_layers"] == 2

    folder = tmp_path / "licensed"
    shutil.copytree(int4_folder, folder)
    (folder / "LICENSE").write_text("\nSome Research License v1\n\nTerms\n")
    (folder / "README.md").write_text("# A model card\n")
    done = export_coreml(folder, tmp_path / "l.mlpackage", OPTIONS, credit=Credits("Ada"))
    metadata = spec_of(done.package).description.metadata
    assert metadata.author == "Ada"
    assert metadata.license.startswith("Some Research License v1")
    assert metadata.userDefined["mobilemoe.model_card"] == "# A model card\n"
    assert (done.resources / "LICENSE").is_file()


def test_resources_and_manifest(package: Path, int4_folder: Path) -> None:
    folder = package.with_name("S-resources")
    assert (folder / "tokenizer.json").read_bytes() == (int4_folder / "tokenizer.json").read_bytes()
    settings = json.loads((int4_folder / "tokenizer_config.json").read_text())
    template = settings["chat_template"]
    assert json.loads((folder / "tokenizer_config.json").read_text()) == settings | {
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert (folder / "chat_template.jinja").read_text() == template
    # That of config.json, and the tokenizer's <|eot|>.
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 5]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["context"] == 64
    assert set(manifest["functions"]) == {"prefill", "decode"}
    assert manifest["functions"]["decode"]["states"]["key_cache"] == {
        "shape": [2, 2, 64, 16],
        "least": [2, 2, 64, 16],
        "dtype": "float16",
    }
    # 2 caches x 2 layers x 2 heads x 64 positions x 16 features x 2 bytes
    assert manifest["sizes"]["key_value_cache"] == 2 * 2 * 2 * 64 * 16 * 2
    files = {
        str(p.relative_to(package.parent)): p
        for top in (package, folder)
        for p in top.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }
    assert set(manifest["files"]) == set(files)
    for name, path in files.items():
        assert manifest["files"][name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert manifest["files"][name]["bytes"] == path.stat().st_size


def test_two_exports_are_the_same_bytes(int4_folder: Path, tmp_path: Path, package: Path) -> None:
    again = export_coreml(int4_folder, tmp_path / "S.mlpackage", OPTIONS).package
    for name in ("model.mlmodel", "weights/weight.bin"):
        path = f"Data/com.apple.CoreML/{name}"
        assert (package / path).read_bytes() == (again / path).read_bytes(), name


def test_mlx_layout_gives_the_same_weights(
    int4_folder: Path, tmp_path: Path, package: Path
) -> None:
    convert(int4_folder, tmp_path / "mlx", to="mlx")
    done = export_coreml(tmp_path / "mlx", tmp_path / "S.mlpackage", OPTIONS)
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    assert (package / weights).read_bytes() == (done.package / weights).read_bytes()


def test_bf16_is_rounded_only_on_request(bf16_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--quantize"):
        export_coreml(bf16_folder, tmp_path / "b.mlpackage", OPTIONS)
    done = export_coreml(bf16_folder, tmp_path / "b.mlpackage", OPTIONS, quantize=True)
    convert(bf16_folder, tmp_path / "int4", quantize=True)
    rounded = export_coreml(tmp_path / "int4", tmp_path / "c.mlpackage", OPTIONS)
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    assert (rounded.package / weights).read_bytes() == (done.package / weights).read_bytes()


def test_int4_is_not_rounded_again(int4_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="INT4 already"):
        export_coreml(int4_folder, tmp_path / "b.mlpackage", OPTIONS, quantize=True)


@pytest.mark.parametrize(
    ("target", "version"), [("iOS18", 9), ("macOS15", 9), ("iOS26", 10), ("macOS26", 10)]
)
def test_targets(int4_folder: Path, tmp_path: Path, target: str, version: int) -> None:
    options = ExportOptions(context=32, prefill_block=8, target=target)
    done = export_coreml(int4_folder, tmp_path / "t.mlpackage", options)
    assert spec_of(done.package).specificationVersion == version


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context": 257}, ["257", "256", "max_position_embeddings"]),
        ({"context": 3}, ["--context"]),
        ({"prefill_block": 65}, ["--prefill-block", "64"]),
        ({"prefill_block": 1}, ["--prefill-block"]),
        ({"target": "iOS17"}, ["states", "iOS 18"]),
        ({"target": "macOS14"}, ["states", "macOS 15"]),
        ({"target": "iOS81"}, ["iOS18"]),
        ({"target": "android"}, ["iOS18"]),
        ({"logits": "some"}, ["--logits"]),
        ({"moe": "magic"}, ["--moe"]),
        ({"weights_beside": True}, ["--weights-beside", "custom-layer"]),
        ({"moe": "custom-layer", "target": "iOS26"}, ["--target iOS26", "iOS 13"]),
    ],
)
def test_impossible_options(
    int4_folder: Path, tmp_path: Path, changes: dict, words: list[str]
) -> None:
    options = ExportOptions(**({"context": 64, "prefill_block": 16} | changes))
    with pytest.raises(UserError) as error:
        export_coreml(int4_folder, tmp_path / "x.mlpackage", options)
    assert all(word in str(error.value) for word in words)
    assert not list(tmp_path.iterdir())


def test_rows_beyond_a_16_bit_index() -> None:
    args = small_args(num_local_experts=4096, num_experts_per_tok=8, max_position_embeddings=8192)
    with pytest.raises(UserError, match="159,712 rows"):
        ExportOptions(context=8192, prefill_block=4095).check(args)
    ExportOptions(context=8192, prefill_block=256).check(args)
    ExportOptions("custom-layer", context=8192, prefill_block=4095).check(args)


def test_positions_beyond_a_16_bit_index(tmp_path: Path) -> None:
    """65,536 and later positions of a long context, through both functions."""
    args = small_args(num_hidden_layers=1, max_position_embeddings=131_072)
    write_random_checkpoint(tmp_path / "long", args, quantized=True)
    options = ExportOptions(context=65_600, prefill_block=16)
    package = export_coreml(tmp_path / "long", tmp_path / "l.mlpackage", options).package
    session = CoreOpsSession(read_package(package), args, "float32")
    session.reset()
    angles = [np.cos((65_540 + t) / rope_periods(args).astype(np.float64)) for t in range(2)]
    assert np.allclose(read_constant(package, names.ROPE_COS)[65_540:65_542], angles, atol=1e-6)
    logits = [
        session.feed([5, 6], 65_540, is_decode=False).logits,
        session.feed([7], 65_542, is_decode=True).logits,
    ]
    assert all(np.isfinite(row).all() for row in logits)


def read_constant(package: Path, name: str) -> np.ndarray:
    saved = read_package(package)
    (operation,) = [o for o in saved.functions["decode"].operations if o.name == name]
    return np.asarray(saved.value(operation.attributes["val"]))


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_resources_that_no_app_can_read(int4_folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(int4_folder, tmp_path / "c")
    (tmp_path / "c" / name).write_text("garbage")
    with pytest.raises(UserError, match=f"{name} of the checkpoint is not valid JSON"):
        export_coreml(tmp_path / "c", tmp_path / "x.mlpackage", OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    (tmp_path / "c" / name).write_text('{"eos_token_id": 1, "eos_token_id": 2}')
    with pytest.raises(UserError, match="has 'eos_token_id' twice"):
        export_coreml(tmp_path / "c", tmp_path / "x.mlpackage", OPTIONS)


def test_a_tokenizer_without_settings(int4_folder: Path, tmp_path: Path) -> None:
    """swift-transformers finds no tokenizer without a class that it knows."""
    shutil.copytree(int4_folder, tmp_path / "c")
    (tmp_path / "c" / "tokenizer_config.json").unlink()
    done = export_coreml(tmp_path / "c", tmp_path / "x.mlpackage", OPTIONS)
    assert json.loads((done.resources / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.feed_forward.expert_bias"])
def test_values_that_are_not_finite(int4_folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(int4_folder, tmp_path / "c")
    (path,) = (tmp_path / "c").glob("*.safetensors")
    tensors = mx.load(str(path))
    tensors[name] = tensors[name] * mx.array(float("nan"), tensors[name].dtype)
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors)
    with pytest.raises(UserError, match=f"{name} has values that are not finite"):
        export_coreml(tmp_path / "c", tmp_path / "x.mlpackage", OPTIONS)


def test_licence_of_the_model_card(int4_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(int4_folder, tmp_path / "c")
    card = "---\nlicense: other\nlicense_name: fair-noncommercial\n---\n# A model\nlicense: no\n"
    (tmp_path / "c" / "README.md").write_text(card)
    done = export_coreml(tmp_path / "c", tmp_path / "x.mlpackage", OPTIONS)
    licence = spec_of(done.package).description.metadata.license
    assert licence == "fair-noncommercial (see README.md in the resources folder)"
    (tmp_path / "c" / "LICENSE").mkdir()
    (tmp_path / "c" / "LICENSE.md").write_text("# FAIR Noncommercial\n")
    done = export_coreml(tmp_path / "c", tmp_path / "x.mlpackage", OPTIONS, force=True)
    licence = spec_of(done.package).description.metadata.license
    assert licence == "FAIR Noncommercial (see LICENSE.md in the resources folder)"


def test_descriptions_say_what_each_function_takes(
    int4_folder: Path, tmp_path: Path, package: Path
) -> None:
    functions = {f.name: f for f in spec_of(package).description.functions}
    texts = {
        name: {f.name: f.shortDescription for f in (*function.input, *function.output)}
        for name, function in functions.items()
    }
    assert "16 of them. Pad" in texts["prefill"]["tokens"]
    assert texts["decode"]["tokens"] == "Token ids, 0 to 479: one."
    assert "after the last" in texts["prefill"]["logits"]
    options = ExportOptions(context=32, prefill_block=8, logits="all")
    every = export_coreml(int4_folder, tmp_path / "a.mlpackage", options).package
    (prefill,) = [f for f in spec_of(every).description.functions if f.name == "prefill"]
    assert "after each" in prefill.output[0].shortDescription
    layers = ExportOptions("custom-layer", context=32, prefill_block=8)
    custom = export_coreml(int4_folder, tmp_path / "c.mlpackage", layers).package
    described = spec_of(custom).description
    features = {f.name: f.shortDescription for f in (*described.input, *described.output)}
    assert features["tokens"] == "Token ids, 0 to 479, 1 to 8 of them."
    assert "stay below the context, 32" in features["position"]
    assert all("float32" in features[name] for name in ("key_cache", "new_values"))


def test_the_context_of_a_model_with_fewer_positions(int4_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.mlpackage"
    assert main(["export", "coreml", str(int4_folder), str(out)]) == 0
    manifest = json.loads((tmp_path / "x-resources" / "manifest.json").read_text())
    assert (manifest["context"], manifest["prefill_block"]) == (256, 256)


def test_not_a_mobilemoe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert main(["export", "coreml", str(folder), str(tmp_path / "x.mlpackage")]) == 2
    error = capsys.readouterr().err
    assert "llama" in error and "Traceback" not in error
    assert not (tmp_path / "x.mlpackage").exists()


def test_command(int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.mlpackage")
    command = ["export", "coreml", str(int4_folder), out, "--context", "32"]
    assert main([*command, "--prefill-block", "8"]) == 0
    printed = capsys.readouterr()
    assert "x the checkpoint's weights" in printed.out
    assert f"mobilemoe verify {out} --against {int4_folder}" in printed.out
    assert main([*command, "--prefill-block", "8"]) == 2
    assert "--overwrite" in capsys.readouterr().err
