"""`mobilemoe verify` proves ONNX folders of every form, and catches every wrong one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx
from onnx import numpy_helper

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.onnx.folder import export_onnx
from mobilemoe_mlx.export.onnx.options import ExportOptions
from mobilemoe_mlx.verify.verdict_text import as_text
from mobilemoe_mlx.verify.verify import verify_package

pytestmark = pytest.mark.usefixtures("kernel_is_built")

CONTEXT = 64


@pytest.fixture(scope="module")
def exported(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[ExportOptions, Path] = {}

    def export(form: str, **choices: object) -> Path:
        options = ExportOptions(form=form, context=CONTEXT, requantize=form == "qmoe", **choices)
        if options not in made:
            folder = tmp_path_factory.mktemp("verified") / form
            made[options] = export_onnx(int4_folder, folder, options).folder
        return made[options]

    return export


@pytest.mark.parametrize(
    ("form", "choices", "arithmetics"),
    [
        ("fused", {}, ["float32", "declared"]),
        ("fused", {"activations": "float16", "accuracy_level": 4}, ["int8"]),
        ("portable", {}, ["float32"]),
        ("portable", {"activations": "float16"}, ["declared"]),
        ("portable", {"accuracy_level": 4}, ["float32", "int8"]),
        ("qmoe", {}, ["float32"]),
    ],
)
def test_every_form_is_proved(
    int4_folder: Path,
    exported: Callable[..., Path],
    form: str,
    choices: dict[str, object],
    arithmetics: list[str],
) -> None:
    verdict = verify_package(exported(form, **choices), int4_folder, greedy_tokens=8)
    assert verdict.proved, as_text(verdict)
    assert list(dict.fromkeys(case.arithmetic for case in verdict.cases)) == arithmetics
    assert {case.case for case in verdict.cases} == {"short", "long", "full", "chat"}
    assert (verdict.form, len(verdict.greedy.generated)) == (form, 8)


def place(folder: Path, name: str) -> int:
    """Where the bytes of an initializer begin in the file of weights."""
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    return next(int(e.value) for e in tensor.external_data if e.key == "offset")


def edit(folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray], at: int = 9) -> None:
    """Change one byte of a tensor."""
    with (folder / "model.onnx.data").open("r+b") as file:
        file.seek(place(folder, name) + at)
        byte = np.frombuffer(file.read(1), np.uint8)
        file.seek(-1, 1)
        file.write(change(byte).tobytes())


def edit_graph(folder: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    path = folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    change(model.graph)
    path.write_bytes(model.SerializeToString())


def swapped(graph: onnx.GraphProto) -> None:
    """Gate and up of layer 1's routed experts, where one token goes through them."""

    def swap(nodes) -> int:
        count = 0
        for node in nodes:
            for attribute in node.attribute:
                count += swap(attribute.g.node)
            if node.op_type == "Split" and node.name.startswith("layers.1/one_token"):
                node.output[:] = node.output[::-1]
                count += 1
        return count

    assert swap(graph.node) == 1


def without_norm(graph: onnx.GraphProto) -> None:
    """The selected experts' weights no longer sum to 1."""
    (node,) = (n for n in graph.node if n.name == "layers.1/Div")
    node.op_type = "Mul"


def shifted_table(graph: onnx.GraphProto) -> None:
    """The factor 2.5 is another number."""
    for tensor in graph.initializer:
        if tensor.name.startswith("constant_") and not tensor.dims:
            value = numpy_helper.to_array(tensor)
            if value.dtype == np.float32 and value == np.float32(2.5):
                tensor.CopyFrom(numpy_helper.from_array(np.float32(2.51), tensor.name))
                return
    raise AssertionError


AT = "model.layers.1"
BYTES = {
    "a nibble of an expert": f"{AT}.feed_forward.experts.gate_up_qweight",
    "a scale of an expert": f"{AT}.feed_forward.experts.down_scale",
    "a nibble of attention": f"{AT}.self_attn.qkv_proj.qweight",
    "a scale of the shared expert": f"{AT}.feed_forward.shared_expert.gate_up_proj.weight_scale",
    "a selection bias": f"{AT}.feed_forward.expert_bias",
    "the embedding": "model.embed_tokens.qweight",
    "a rotation": "rope_sin",
}


@pytest.mark.parametrize("what", BYTES)
def test_one_changed_bit_is_named(
    int4_folder: Path, exported: Callable[..., Path], tmp_path: Path, what: str
) -> None:
    folder = shutil.copytree(exported("portable"), tmp_path / "it")
    edit(folder, BYTES[what], lambda byte: byte ^ 1)
    verdict = verify_package(folder, int4_folder, cases=["short"], greedy_tokens=0)
    assert next(p.split()[0] for p in verdict.weights.problems) == BYTES[what]
    assert not verdict.files.passed and not verdict.proved


@pytest.mark.parametrize("change", [swapped, without_norm, shifted_table])
def test_a_wrong_graph_with_the_right_weights(
    int4_folder: Path,
    exported: Callable[..., Path],
    tmp_path: Path,
    change: Callable[[onnx.GraphProto], None],
) -> None:
    folder = shutil.copytree(exported("portable"), tmp_path / "it")
    edit_graph(folder, change)
    verdict = verify_package(folder, int4_folder, cases=["short", "chat"], greedy_tokens=0)
    assert verdict.weights.passed
    assert not all(case.passed for case in verdict.cases)


def test_gate_and_up_of_the_shared_expert_swapped_in_a_fused_folder(
    int4_folder: Path, exported: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported("fused"), tmp_path / "it")

    def swap(graph: onnx.GraphProto) -> None:
        node = next(n for n in graph.node if n.op_type == "DecoderLayer")
        names = list(node.input)
        gate = next(i for i, name in enumerate(names) if "shared_expert.gate" in name)
        node.input[gate : gate + 4] = names[gate + 2 : gate + 4] + names[gate : gate + 2]

    edit_graph(folder, swap)
    verdict = verify_package(folder, int4_folder, cases=["short"], greedy_tokens=0)
    assert verdict.weights.passed
    assert not verdict.cases[0].passed


def test_other_models_and_damaged_folders_are_one_sentence(
    int4_folder: Path,
    exported: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(folder: Path, against: Path = int4_folder) -> str:
        assert main(["verify", str(folder), "--against", str(against), "--case", "short"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "Traceback" not in err
        return err

    good = exported("portable")
    other = shutil.copytree(int4_folder, tmp_path / "other")
    config = files.read_json(other / "config.json")
    files.write_json(other / "config.json", config | {"rope_theta": 77.0})
    assert "was not made from" in said(good, other)
    for name, content, message in (
        ("model.onnx", b"no graph", "model.onnx is damaged"),
        ("model.onnx", None, "lacks model.onnx: export again"),
        ("model.onnx.data", b"short", "does not have the"),
        ("genai_config.json", b"{}", "is damaged (KeyError('model')): export again"),
        ("manifest.json", b'{"format": "mobilemoe-onnx", "version": 9}', "version 9; version 1 is"),
    ):
        folder = shutil.copytree(good, tmp_path / f"{name}-{message[:9]}")
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        assert message in said(folder)
    folder = shutil.copytree(good, tmp_path / "half a manifest")
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest[: len(manifest) // 2])
    assert "no folder that `mobilemoe export onnx` wrote" in said(folder)
    assert "There is no " in said(tmp_path / "nothing")


@pytest.mark.parametrize(
    "key, value",
    [("length", None), ("offset", None), ("location", None), ("length", "12w"), ("offset", "-64")],
)
def test_a_tensor_whose_place_cannot_be_read(
    int4_folder: Path, exported: Callable[..., Path], tmp_path: Path, key: str, value: str | None
) -> None:
    def change(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.name == "model.embed_tokens.qweight")
        (entry,) = (entry for entry in tensor.external_data if entry.key == key)
        if value is None:
            entry.key = "x"
        else:
            entry.value = value

    folder = shutil.copytree(exported("portable"), tmp_path / "it")
    edit_graph(folder, change)
    with pytest.raises(UserError, match=r"model\.embed_tokens\.qweight"):
        verify_package(folder, int4_folder, cases=["short"], greedy_tokens=0)
