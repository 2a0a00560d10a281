"""`mobilemoe info PACKAGE` against the files, the configuration, coremltools and the manifest."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import coremltools as ct
import pytest
from coremltools.proto import Model_pb2
from small_model import small_args

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.export.coreml.package_info import (
    BESIDE,
    EXPERTS,
    FLOATS,
    LINEARS,
    OVERHEAD,
    SCALES,
    TABLES,
    PackageInfo,
    describe_package,
)

ARGS = small_args()
CONTEXT, BLOCK = 64, 16


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small.mlpackage of the core-ops form with its resources; do not write into them."""
    folder = tmp_path_factory.mktemp("package")
    write_random_checkpoint(folder / "checkpoint", ARGS, seed=5, quantized=True)
    options = ExportOptions(context=CONTEXT, prefill_block=BLOCK)
    export_coreml(folder / "checkpoint", folder / "Small.mlpackage", options)
    return folder / "Small.mlpackage"


@pytest.fixture(scope="module")
def info(package: Path) -> PackageInfo:
    return describe_package(package)


def copied(package: Path, folder: Path) -> Path:
    """A copy of the package and its resources that may be damaged."""
    for path in package.parent.glob("Small*"):
        shutil.copytree(path, folder / path.name)
    return folder / package.name


def spec_of(package: Path) -> Model_pb2.Model:
    spec = Model_pb2.Model()
    spec.ParseFromString(model_file(package).read_bytes())
    return spec


def model_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def sizes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_says_what_was_asked_for(info: PackageInfo) -> None:
    assert (info.form, info.target, info.specification_version) == ("core-ops", "iOS18", 9)
    assert (info.context, info.prefill_block, info.logits) == (CONTEXT, BLOCK, "last")
    assert info.quantization["format"] == "mobilemoe-int4-g32"
    assert {info.args.hidden_size, info.args.num_hidden_layers} == {64, 3}
    routed = 3 * 12 * 3 * 64 * 32  # layers, experts, matrices
    assert info.accounting.total_parameters > routed


def test_functions_are_those_that_coremltools_describes(info: PackageInfo, package: Path) -> None:
    described = spec_of(package).description
    assert info.default_function == described.defaultFunctionName
    assert [f.name for f in info.functions] == [f.name for f in described.functions]
    for function, theirs in zip(info.functions, described.functions, strict=True):
        for ours, features in (
            (function.inputs, theirs.input),
            (function.outputs, theirs.output),
        ):
            shapes = {f.name: tuple(f.type.multiArrayType.shape) for f in features}
            assert {name: feature.shape for name, feature in ours.items()} == shapes
        states = {f.name: tuple(f.type.stateType.arrayType.shape) for f in theirs.state}
        assert {name: feature.shape for name, feature in function.states.items()} == states
    prefill = next(f for f in info.functions if f.name == "prefill")
    assert prefill.inputs["tokens"].shape == (1, BLOCK)
    assert prefill.inputs["tokens"].dtype == "int32"
    assert prefill.states["key_cache"].dtype == "float16"


def test_operations_are_those_that_coremltools_loads(info: PackageInfo, package: Path) -> None:
    for function in info.functions:
        model = ct.models.MLModel(str(package), function_name=function.name, skip_model_load=True)
        program = model.get_spec().mlProgram.functions[function.name]
        (block,) = program.block_specializations.values()
        kinds = Counter(o.type for o in block.operations)
        constants = {k for k in kinds if k == "const" or k.startswith("constexpr")}
        assert function.operations == {k: n for k, n in kinds.items() if k not in constants}
        assert sum(function.computed.values()) == sum(
            len(o.outputs) > 0 for o in block.operations if o.type not in constants
        )
        assert function.computed["float32"] > function.computed["bool"]


def test_weights_are_the_models_and_add_up_to_the_file(info: PackageInfo, package: Path) -> None:
    """Codes, scales and floats are counted from the configuration, apart from the exporter."""
    d, w, s, experts = 64, 32, 128, 12
    layers, query, key_value = 3, 4 * 32, 2 * 32
    linear = 96 * d + layers * (2 * d * query + 2 * d * key_value + 3 * d * s)
    expert = layers * experts * 3 * d * w
    floats = layers * (experts * d + experts + 2 * d) + d
    sizes = {kind.kind: kind.bytes for kind in info.weights}
    assert sizes[LINEARS] == linear // 2
    assert sizes[EXPERTS] == expert // 2
    assert sizes[SCALES] == (linear + expert) // 32 * 2
    assert sizes[FLOATS] == floats * 4
    assert sizes[TABLES] == 2 * CONTEXT * (32 // 2) * 4
    assert sizes[OVERHEAD] > 0
    weight_file = model_file(package).parent / "weights" / "weight.bin"
    assert info.weight_bytes == weight_file.stat().st_size
    assert info.program_bytes == model_file(package).stat().st_size
    assert info.package_bytes == sizes_on_disk(package)


def test_the_cache_is_that_of_the_states(info: PackageInfo) -> None:
    elements = 2 * 3 * 2 * CONTEXT * 32  # keys and values, layers, heads, positions, features
    assert info.key_value_cache_bytes == elements * 2


def test_a_whole_export_has_its_manifest(info: PackageInfo, package: Path) -> None:
    assert info.manifest is not None
    assert info.manifest.path == package.parent / "Small-resources" / "manifest.json"
    assert (info.manifest.missing, info.manifest.resized) == ((), ())
    files = sum(p.is_file() for p in package.parent.glob("Small*/**/*"))
    assert info.manifest.files == files - 1  # it does not list itself


def test_missing_and_changed_files_are_named(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(package, tmp_path)
    (tmp_path / "Small-resources" / "generation_config.json").unlink()
    with (tmp_path / "Small-resources" / "config.json").open("a") as file:
        file.write(" ")
    manifest = describe_package(copy).manifest
    assert manifest is not None
    assert manifest.missing == ("Small-resources/generation_config.json",)
    assert manifest.resized == ("Small-resources/config.json",)
    assert main.main(["info", str(copy)]) == 0
    out = capsys.readouterr().out
    assert "Small-resources/generation_config.json is missing" in out
    assert "Small-resources/config.json has another size" in out


def test_a_package_may_travel_alone(package: Path, tmp_path: Path) -> None:
    shutil.copytree(package, tmp_path / "Alone.mlpackage")
    assert describe_package(tmp_path / "Alone.mlpackage").manifest is None


def test_json_has_everything(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["info", str(package), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["form"] == "core-ops"
    assert record["functions"][0]["inputs"]["position"] == {
        "dtype": "int32",
        "shape": [1],
        "least": [1],
    }
    assert sum(kind["bytes"] for kind in record["weights"]) == record["weight_bytes"]
    assert record["total_parameters"] == account(ARGS).total_parameters
    assert record["config"]["hidden_size"] == 64
    assert record["manifest"]["missing"] == []


def test_the_table_shows_functions_and_weights(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = tmp_path / "renamed"  # a folder with a Manifest.json is a package too
    shutil.copytree(package, renamed)
    for path in (package, renamed):
        assert main.main(["info", str(path)]) == 0
        out = capsys.readouterr().out
        for text in (
            "iOS18 (specification version 9)",
            f"{CONTEXT} / {BLOCK} tokens",
            "packed INT4 experts",
            "decode (default)",
            f"float16 [3, 2, {CONTEXT}, 32]",
            "scaled_dot_product_attention",
        ):
            assert text in out
        assert "Traceback" not in out


def test_the_context_cannot_be_chosen_again(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["info", str(package), "--context", "32"]) == 2
    assert "context is fixed" in capsys.readouterr().err


def test_other_packages_and_damage_are_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a Core ML package"):
        describe_package(tmp_path / "nothing.mlpackage")
    copy = copied(package, tmp_path)
    spec = spec_of(copy)
    spec.description.metadata.userDefined.clear()
    model_file(copy).write_bytes(spec.SerializeToString())
    with pytest.raises(UserError, match="not one that `mobilemoe export coreml` wrote"):
        describe_package(copy)
    model_file(copy).write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(UserError, match="is damaged"):
        describe_package(copy)


def test_a_damaged_manifest_is_refused(package: Path, tmp_path: Path) -> None:
    copy = copied(package, tmp_path)
    manifest = tmp_path / "Small-resources" / "manifest.json"
    for content, complaint in (
        ("{", "is not valid JSON: .*: export again"),
        ('{"version": 1, "version": 2}', "has 'version' twice.*: export again"),
        ("[]", "is damaged"),
        ('{"format": "other", "version": 1, "files": {}}', "is other version 1"),
    ):
        manifest.write_text(content)
        with pytest.raises(UserError, match=complaint):
            describe_package(copy)


@pytest.mark.parametrize("beside", [False, True])
def test_custom_layer_packages(package: Path, tmp_path: Path, beside: bool) -> None:
    path = tmp_path / "Layers.mlpackage"
    options = ExportOptions(
        "custom-layer", context=CONTEXT, prefill_block=BLOCK, weights_beside=beside
    )
    export_coreml(package.parent / "checkpoint", path, options)
    info = describe_package(path)
    assert (info.form, info.target, info.specification_version) == ("custom-layer", "iOS13", 4)
    (function,) = info.functions
    assert function.name == info.default_function == "main"
    assert str(function.inputs["tokens"]) == f"int32 [1..{BLOCK}]"
    assert str(function.outputs["new_keys"]) == f"float32 [3, 2, 1..{BLOCK}, 32]"
    assert str(function.outputs["logits"]) == "float32 [1, 96]"
    assert function.operations == {
        "MobileMoEAttention": 3,
        "MobileMoEExperts": 3,
        "MobileMoECacheRows": 2,
        "MobileMoEEmbedding": 1,
        "MobileMoEHead": 1,
    }
    sizes = {kind.kind: kind.bytes for kind in info.weights}
    if beside:
        assert sizes == {BESIDE: (tmp_path / "Layers-resources" / "weights.bin").stat().st_size}
    else:  # the same weights as the other form has, with periods in place of tables
        core_ops = {kind.kind: kind.bytes for kind in describe_package(package).weights}
        for kind in (LINEARS, EXPERTS, SCALES, FLOATS):
            assert sizes[kind] == core_ops[kind]
        assert sizes[TABLES] == 3 * (32 // 2) * 4
    assert info.key_value_cache_bytes == 2 * 3 * 2 * CONTEXT * 32 * 4
    inside = 0 if beside else info.weight_bytes
    assert 0 < info.program_bytes == model_file(path).stat().st_size - inside
    manifest = json.loads((tmp_path / "Layers-resources" / "manifest.json").read_text())
    tokens = manifest["functions"]["main"]["inputs"]["tokens"]
    assert tokens == {"dtype": "int32", "shape": [BLOCK], "least": [1]}


def test_missing_weights_are_named(package: Path, tmp_path: Path) -> None:
    copy = copied(package, tmp_path)
    shutil.rmtree(model_file(copy).parent / "weights")
    with pytest.raises(UserError, match="has no weight file"):
        describe_package(copy)
    options = ExportOptions("custom-layer", CONTEXT, BLOCK, weights_beside=True)
    export_coreml(package.parent / "checkpoint", tmp_path / "L.mlpackage", options)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "other.mlpackage").symlink_to(tmp_path / "L.mlpackage")
    assert describe_package(tmp_path / "link" / "other.mlpackage").manifest is not None
    shutil.rmtree(tmp_path / "L-resources")
    with pytest.raises(UserError, match=r"L-resources/weights\.bin beside it"):
        describe_package(tmp_path / "L.mlpackage")
