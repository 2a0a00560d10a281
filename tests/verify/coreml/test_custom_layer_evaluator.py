"""Saved custom-layer packages, evaluated, against MLX and PyTorch; and all that is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import coremltools as ct
import mlx.core as mx
import numpy as np
import pytest
import torch

from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml.custom.layers import write_custom_layer_model
from mobilemoe_mlx.export.coreml.metadata import Credits
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.int4_source import open_source
from mobilemoe_mlx.numerics.measures import TensorError
from mobilemoe_mlx.numerics.values import Trace, trace_mlx
from mobilemoe_mlx.verify.coreml.custom_layer_evaluator import CustomLayerEvaluator
from mobilemoe_mlx.verify.coreml.custom_layer_model import read_custom_layer_model

CONTEXT, BLOCK, VOCABULARY = 48, 16, 480

# MLX adds the same products in float32 in another order; measured 5e-7.
FLOAT32_ORDER = 1e-5


def export(
    folder: Path,
    target: Path,
    logits: Literal["last", "all"] = "last",
    beside: bool = False,
) -> Path:
    """A package X.mlpackage in `target`, with its side file, if any, in X-resources."""
    path = target / "X.mlpackage"
    (target / "X-resources").mkdir(parents=True)
    write_custom_layer_model(
        open_source(folder),
        ExportOptions("custom-layer", CONTEXT, BLOCK, logits=logits, weights_beside=beside),
        Credits(),
        path,
        target / "X-resources",
    )
    return path


@pytest.fixture(scope="module")
def inside(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with its weights inside; do not write into it."""
    return export(int4_folder, tmp_path_factory.mktemp("inside") / "x")


@pytest.fixture(scope="module")
def beside(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a side file; do not write into it."""
    return export(int4_folder, tmp_path_factory.mktemp("beside") / "x", beside=True)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(VOCABULARY, size=CONTEXT).astype(np.int32)


@pytest.fixture(scope="module")
def expected(int4_folder: Path, tokens: np.ndarray) -> Trace:
    return trace_mlx(load_model(int4_folder, dtype=mx.float32), tokens.tolist())


class App:
    """What an app does with a package: calls it and copies the new rows into its caches."""

    def __init__(self, path: Path, leftover: float = 0.0) -> None:
        package = read_custom_layer_model(path)
        self.evaluator = CustomLayerEvaluator(package)
        shape = package.inputs["key_cache"].shape
        self.caches = {
            n: np.full(shape, leftover, np.float32) for n in ("key_cache", "value_cache")
        }
        self.position = 0
        self.taps: dict[str, list[np.ndarray]] = {}

    def inputs(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        position = np.array([self.position], np.int32)
        return {"tokens": tokens, "position": position, **self.caches}

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """-> logits."""

        def watch(name: str, array: np.ndarray) -> None:
            self.taps.setdefault(name, []).append(array.copy())

        outputs = self.evaluator.run(self.inputs(tokens), watch)
        end = self.position + len(tokens)
        self.caches["key_cache"][:, :, self.position : end] = outputs["new_keys"]
        self.caches["value_cache"][:, :, self.position : end] = outputs["new_values"]
        self.position = end
        return outputs["logits"]

    def feed_blocks(self, tokens: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
        for begin, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            yield self.feed(tokens[begin : begin + size])


# A prompt in blocks, the last one short, then tokens one by one to the end of the context.
CALLS = [16, 16, 9, *[1] * 7]


@pytest.mark.parametrize("form", ["inside", "beside"])
def test_a_prompt_and_decoding_give_what_mlx_gives(
    form: str, request: pytest.FixtureRequest, tokens: np.ndarray, expected: Trace
) -> None:
    app = App(request.getfixturevalue(form))
    logits = list(app.feed_blocks(tokens, CALLS))
    assert all(x.shape == (1, VOCABULARY) and x.dtype == np.float32 for x in logits)
    rows = np.cumsum(CALLS) - 1
    error = TensorError.between(np.concatenate(logits), expected.logits[rows])
    assert error.max < FLOAT32_ORDER
    for index, layer in enumerate(expected.layers):
        hidden = np.concatenate(app.taps[f"layers_{index}_hidden"])
        assert TensorError.between(hidden, layer.hidden).max < FLOAT32_ORDER
        scores = np.concatenate(app.taps[f"layers_{index}_scores"])
        np.testing.assert_allclose(scores, layer.scores, atol=1e-5)
        experts = np.concatenate(app.taps[f"layers_{index}_experts"])
        np.testing.assert_array_equal(experts, layer.experts)
        shares = np.concatenate(app.taps[f"layers_{index}_expert_weights"])
        np.testing.assert_allclose(shares.sum(axis=-1), 2.5, rtol=1e-6)


def test_all_logits_are_pytorch_s(int4_folder: Path, tmp_path: Path, tokens: np.ndarray) -> None:
    app = App(export(int4_folder, tmp_path / "x", logits="all"))
    logits = list(app.feed_blocks(tokens, CALLS))
    assert [len(x) for x in logits] == CALLS
    with torch.no_grad():
        reference = load_torch_model(int4_folder)(torch.from_numpy(tokens.astype(np.int64))[None])
    error = TensorError.between(np.concatenate(logits), reference.logits[0].numpy())
    assert error.max < FLOAT32_ORDER


def test_blocks_make_no_difference(inside: Path, tokens: np.ndarray) -> None:
    def run(sizes: list[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        app = App(inside)
        *_, last = app.feed_blocks(tokens, sizes)
        return last, app.caches

    logits, caches = run([1] * 20)
    for sizes in ([16, 4], [3, 16, 1], [5, 5, 5, 5]):
        other, other_caches = run(sizes)
        # Cached rows are rounded to float32 where those of the block itself are not.
        assert TensorError.between(other, logits).max < 1e-6
        for name in caches:
            np.testing.assert_allclose(other_caches[name], caches[name], atol=1e-5)


def test_leftovers_in_the_cache_are_not_read(inside: Path, tokens: np.ndarray) -> None:
    clean, dirty = App(inside), App(inside, leftover=1e6)
    for size in (7, 1, 4):
        part = tokens[clean.position : clean.position + size]
        np.testing.assert_array_equal(clean.feed(part), dirty.feed(part))


def test_both_forms_are_one_model(inside: Path, beside: Path, tokens: np.ndarray) -> None:
    np.testing.assert_array_equal(App(inside).feed(tokens[:9]), App(beside).feed(tokens[:9]))


def test_the_package_is_described(inside: Path) -> None:
    package = read_custom_layer_model(inside)
    assert package.inputs["tokens"].pattern == (-1,)
    assert str(package.inputs["tokens"]) == "int32 [1..16]"
    assert package.inputs["key_cache"].shape == (2, 2, CONTEXT, 16)
    names = [layer.kind.name for layer in package.layers]
    assert names == [
        "MobileMoEEmbedding",
        *["MobileMoEAttention", "MobileMoEExperts"] * 2,
        *["MobileMoECacheRows"] * 2,
        "MobileMoEHead",
    ]


BAD_INPUTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "one missing": (lambda x: x.pop("position"), "its inputs are tokens, position"),
    "one too many": (lambda x: x.update(length=np.ones(1)), "its inputs are"),
    "no tokens": (lambda x: x.update(tokens=np.zeros(0, np.int32)), r"declared int32 \[1..16\]"),
    "too many tokens": (lambda x: x.update(tokens=np.zeros(17, np.int32)), r"int32 \[17\]"),
    "float tokens": (lambda x: x.update(tokens=np.zeros(3, np.float32)), "'tokens' is float32"),
    "an id too large": (lambda x: x["tokens"].fill(480), "token ids must be 0 to 479"),
    "a negative id": (lambda x: x["tokens"].fill(-1), "token ids must be 0 to 479"),
    "a negative position": (lambda x: x["position"].fill(-1), "leave the context of 48"),
    "beyond the context": (lambda x: x["position"].fill(46), "3 tokens at position 46 leave"),
    "a shorter cache": (
        lambda x: x.update(key_cache=x["key_cache"][:, :, 1:]),
        r"'key_cache' is float32 \[2, 2, 47, 16\]",
    ),
    "a cache in half": (
        lambda x: x.update(value_cache=x["value_cache"].astype(np.float16)),
        "'value_cache' is float16",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_wrong_inputs_are_refused(inside: Path, tokens: np.ndarray, case: str) -> None:
    app = App(inside)
    spoil, complaint = BAD_INPUTS[case]
    inputs = app.inputs(tokens[:3].copy())
    spoil(inputs)
    with pytest.raises(UserError, match=complaint):
        app.evaluator.run(inputs)


def layer(spec: Any, name: str) -> Any:
    return next(x for x in spec.neuralNetwork.layers if x.name == name)


def parameter(spec: Any, layer_name: str, name: str) -> Any:
    return layer(spec, layer_name).custom.parameters[name]


def add_layer_of_another_type(spec: Any) -> None:
    spec.neuralNetwork.layers.add(name="extra", input=["logits"], output=["x"]).softmaxND.axis = 1


def attention(spec: Any) -> Any:
    return layer(spec, "layers_1_attention")


def no_tokens(spec: Any) -> None:
    array = spec.description.input[0].type.multiArrayType
    array.shape[0] = array.shapeRange.sizeRanges[0].lowerBound = 0


def swap_layers(spec: Any) -> None:
    first, second = spec.neuralNetwork.layers[1], spec.neuralNetwork.layers[2]
    copy = type(first)()
    copy.CopyFrom(first)
    first.CopyFrom(second)
    second.CopyFrom(copy)


def flip_a_code_of_the_table(spec: Any) -> None:
    weight = layer(spec, "embedding").custom.weights[0]
    weight.rawValue = bytes([weight.rawValue[0] ^ 1]) + weight.rawValue[1:]


# What is changed in a package with its weights inside -> (how, what the message says).
DAMAGE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another kind of model": (
        lambda s: s.identity.SetInParent(),
        "of the kind 'identity', not a NeuralNetwork",
    ),
    "another specification": (
        lambda s: setattr(s, "specificationVersion", 3),
        "has the specification version 3",
    ),
    "an updatable model": (lambda s: setattr(s, "isUpdatable", True), "the model has isUpdatable"),
    "shapes of five sizes": (
        lambda s: setattr(s.neuralNetwork, "arrayInputShapeMapping", 0),
        "EXACT_ARRAY_MAPPING",
    ),
    "preprocessing": (
        lambda s: s.neuralNetwork.preprocessing.add(featureName="tokens"),
        "its network has preprocessing",
    ),
    "a predicted feature": (
        lambda s: setattr(s.description, "predictedFeatureName", "logits"),
        "its description has predictedFeatureName",
    ),
    "an optional input": (
        lambda s: setattr(s.description.input[0].type, "isOptional", True),
        "'tokens' has isOptional",
    ),
    "a float16 input": (
        lambda s: setattr(s.description.input[2].type.multiArrayType, "dataType", 65552),
        "'key_cache' has the type float16",
    ),
    "enumerated shapes": (
        lambda s: (
            s.description.input[0].type.multiArrayType.enumeratedShapes.shapes.add().shape.append(1)
        ),
        "'tokens' has enumeratedShapes",
    ),
    "another input": (
        lambda s: setattr(s.description.input[1], "name", "offset"),
        "its inputs are tokens, offset",
    ),
    "an output nobody makes": (
        lambda s: setattr(s.description.output[0], "name", "scores"),
        "no layer makes its output 'scores'",
    ),
    "an output of another shape": (
        lambda s: s.description.output[0].type.multiArrayType.shape.__setitem__(1, 481),
        r"no layer makes its output 'logits', float32 \[1, 481\]",
    ),
    "an integer output": (
        lambda s: setattr(s.description.output[0].type.multiArrayType, "dataType", 131104),
        "no layer makes its output 'logits', int32",
    ),
    "another layer type": (add_layer_of_another_type, "'extra' is of the type 'softmaxND'"),
    "another class": (
        lambda s: setattr(attention(s).custom, "className", "MobileMoEAtention"),
        "did you mean 'MobileMoEAttention'",
    ),
    "an updatable layer": (
        lambda s: setattr(attention(s), "isUpdatable", True),
        "'layers_1_attention' has isUpdatable",
    ),
    "a parameter too few": (
        lambda s: attention(s).custom.parameters.pop("heads"),
        "'layers_1_attention' lacks the parameter heads",
    ),
    "a parameter too many": (
        lambda s: setattr(attention(s).custom.parameters["sinks"], "intValue", 1),
        "has the parameter 'sinks'",
    ),
    "a parameter of another type": (
        lambda s: setattr(parameter(s, "layers_1_attention", "heads"), "doubleValue", 6),
        "'heads' is a doubleValue, not a intValue",
    ),
    "another version": (
        lambda s: setattr(parameter(s, "head", "version"), "intValue", 2),
        "'head' is of version 2 of the contract; 1 is known",
    ),
    "heads that do not divide": (
        lambda s: setattr(parameter(s, "layers_1_attention", "kv_heads"), "intValue", 4),
        "contradict each other",
    ),
    "a layer too high": (
        lambda s: setattr(parameter(s, "layers_1_attention", "layer"), "intValue", 2),
        "contradict each other",
    ),
    "more selected than there are": (
        lambda s: setattr(parameter(s, "layers_1_moe", "experts_per_token"), "intValue", 8),
        "contradict each other",
    ),
    "no such logits": (
        lambda s: setattr(parameter(s, "head", "logits"), "stringValue", "some"),
        "contradict each other",
    ),
    "a size of zero": (
        lambda s: setattr(parameter(s, "layers_1_moe", "shared_width"), "intValue", 0),
        "'shared_width' is 0",
    ),
    "a negative epsilon": (
        lambda s: setattr(parameter(s, "head", "norm_eps"), "doubleValue", -1e-5),
        "'norm_eps' is -1e-05",
    ),
    "other sizes than the weights'": (
        lambda s: setattr(parameter(s, "layers_1_moe", "expert_width"), "intValue", 64),
        r"gate_up_codes has 14336 bytes, 28672 by its parameters",
    ),
    "a weight too few": (
        lambda s: attention(s).custom.weights.pop(),
        "has 9 weights, 10 in the contract",
    ),
    "a weight of another type": (
        lambda s: setattr(attention(s).custom.weights[2], "rawValue", b"x"),
        "q_scales has rawValue",
    ),
    "a quantised weight": (
        lambda s: setattr(attention(s).custom.weights[1].quantization, "numberOfBits", 4),
        "q_codes has quantization",
    ),
    "a weight cut short": (
        lambda s: attention(s).custom.weights[0].floatValue.pop(),
        "norm has 252 bytes, 256 by its parameters",
    ),
    "other stated shapes": (
        lambda s: setattr(attention(s).inputTensor[0], "rank", 3),
        "'layers_1_attention' states the shapes",
    ),
    "an input too few": (
        lambda s: (attention(s).input.pop(), attention(s).inputTensor.pop()),
        "'layers_1_attention' states the shapes",
    ),
    "an input nobody states": (
        lambda s: attention(s).input.append("tokens"),
        "'layers_1_attention' has the inputs",
    ),
    "an input nobody makes": (
        lambda s: attention(s).input.__setitem__(0, "x"),
        "takes 'x' as .* which no earlier layer makes",
    ),
    "an input of another shape": (
        lambda s: attention(s).input.__setitem__(0, "tokens"),
        r"takes 'tokens' as \[-1, 64\], which is \[-1\]",
    ),
    "layers in another order": (swap_layers, "which no earlier layer makes"),
    "an array made twice": (
        lambda s: attention(s).output.__setitem__(1, "layers_0_new_keys"),
        "makes 'layers_0_new_keys' a second time",
    ),
    "another table": (flip_a_code_of_the_table, "'embedding' names another table"),
    "a head without its table": (
        lambda s: setattr(parameter(s, "head", "table"), "stringValue", "0" * 64),
        "'head' names another table",
    ),
    "a shape beside its ranges": (
        lambda s: s.description.input[0].type.multiArrayType.shape.__setitem__(0, -1),
        r"'tokens' has the shape \[-1\] beside",
    ),
    "calls without tokens": (no_tokens, r"'tokens' has the sizes \(\(0, 16\),\)"),
    "an input declared twice": (
        lambda s: s.description.input.add().CopyFrom(s.description.input[1]),
        "'position' is declared twice",
    ),
    "rows of another number of layers": (
        lambda s: setattr(parameter(s, "new_keys_of_all", "layers"), "intValue", 2**31 - 1),
        "has 2 inputs for 2147483647 layers",
    ),
    "no head": (lambda s: s.neuralNetwork.layers.pop(), "no layer makes its output 'logits'"),
}


def damaged(package: Path, tmp_path: Path, change: Callable[[Any], Any]) -> Path:
    """A copy of an export whose model was changed."""
    shutil.copytree(package.parent, tmp_path / "x")
    copy = tmp_path / "x" / package.name
    model = copy / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = ct.utils.load_spec(str(copy))
    change(spec)
    model.chmod(0o644)
    model.write_bytes(spec.SerializeToString())
    return copy


@pytest.mark.parametrize("case", DAMAGE)
def test_what_the_contract_lacks_is_refused(inside: Path, tmp_path: Path, case: str) -> None:
    change, complaint = DAMAGE[case]
    copy = damaged(inside, tmp_path, change)
    with pytest.raises(UserError, match=complaint) as raised:
        read_custom_layer_model(copy)
    assert str(copy) in str(raised.value)


def moved(amount: int) -> Callable[[Any], None]:
    def change(spec: Any) -> None:
        parameter(spec, "layers_1_moe", "router_offset").longValue += amount

    return change


# The same for a package with a side file.
SIDE_DAMAGE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "weights inside too": (
        lambda s: attention(s).custom.weights.add(rawValue=b"x"),
        "weights both inside and in a side file",
    ),
    "no place for an entry": (
        lambda s: attention(s).custom.parameters.pop("norm_bytes"),
        "lacks the parameter norm_bytes",
    ),
    "a place between pages": (moved(4), "router lies at"),
    "a place beyond the end": (moved(2**40), "router lies at"),
    "another size": (
        lambda s: setattr(parameter(s, "layers_1_moe", "router_bytes"), "longValue", 4),
        "router has 4 bytes, 1792 by its parameters",
    ),
    "another file": (
        lambda s: setattr(parameter(s, "head", "weights_file"), "stringValue", "other.bin"),
        "other.bin is missing",
    ),
    "a file elsewhere": (
        lambda s: setattr(
            parameter(s, "head", "weights_file"), "stringValue", "../X-resources/weights.bin"
        ),
        "is missing",
    ),
    "another checksum": (
        lambda s: setattr(parameter(s, "head", "weights_sha256"), "stringValue", "0" * 64),
        "not the file that the package was exported with",
    ),
    "another length of the file": (
        lambda s: setattr(parameter(s, "head", "weights_bytes"), "longValue", 16384),
        "not the file that the package was exported with",
    ),
}


@pytest.mark.parametrize("case", SIDE_DAMAGE)
def test_a_wrong_side_file_is_refused(beside: Path, tmp_path: Path, case: str) -> None:
    change, complaint = SIDE_DAMAGE[case]
    with pytest.raises(UserError, match=complaint):
        read_custom_layer_model(damaged(beside, tmp_path, change))


def test_a_changed_side_file_is_refused(beside: Path, tmp_path: Path) -> None:
    copy = damaged(beside, tmp_path, lambda spec: None)
    read_custom_layer_model(copy)
    path = copy.parent / "X-resources" / "weights.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="its size or checksum differs"):
        read_custom_layer_model(copy)
    path.unlink()
    with pytest.raises(UserError, match=r"weights\.bin is missing"):
        read_custom_layer_model(copy)


def test_a_side_file_may_lie_elsewhere(beside: Path, tmp_path: Path, tokens: np.ndarray) -> None:
    shutil.copytree(beside, tmp_path / "Y.mlpackage")
    with pytest.raises(UserError, match=r"Y-resources/weights\.bin is missing"):
        read_custom_layer_model(tmp_path / "Y.mlpackage")
    package = read_custom_layer_model(tmp_path / "Y.mlpackage", beside.parent / "X-resources")
    app = App(beside)
    moved_logits = CustomLayerEvaluator(package).run(app.inputs(tokens[:4]))["logits"]
    np.testing.assert_array_equal(moved_logits, app.feed(tokens[:4]))


def test_a_damaged_package_is_refused(inside: Path, tmp_path: Path) -> None:
    copy = damaged(inside, tmp_path, lambda spec: None)
    model = copy / "Data" / "com.apple.CoreML" / "model.mlmodel"
    content = model.read_bytes()
    model.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        read_custom_layer_model(copy)
    # A field of the protobuf message that nobody has given a name: number 15000, the value 1.
    model.write_bytes(content + b"\xc0\xa9\x07\x01")
    with pytest.raises(UserError, match="cannot name"):
        read_custom_layer_model(copy)
    model.unlink()
    with pytest.raises(UserError, match="No such file"):
        read_custom_layer_model(copy)
    manifest = copy / "Manifest.json"
    content_of = json.loads(manifest.read_text())
    root = content_of["itemInfoEntries"][content_of["rootModelIdentifier"]]
    root["path"] = "../../elsewhere.mlmodel"
    manifest.write_text(json.dumps(content_of))
    with pytest.raises(UserError, match="outside the package"):
        read_custom_layer_model(copy)
    manifest.write_text("{}")
    with pytest.raises(UserError, match="names no model"):
        read_custom_layer_model(copy)
    manifest.unlink()
    with pytest.raises(UserError, match="not a Core ML package"):
        read_custom_layer_model(copy)
