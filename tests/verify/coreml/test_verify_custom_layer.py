"""`mobilemoe verify` on the custom-layer form: good packages pass, wrong ones are caught."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.proto import Model_pb2

from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.verify.verdict import Verdict
from mobilemoe_mlx.verify.verify import verify_package

OPTIONS = ExportOptions(moe="custom-layer", context=53, prefill_block=16)


@pytest.fixture(scope="module")
def good(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights inside; do not write into it."""
    folder = tmp_path_factory.mktemp("inside")
    return export_coreml(int4_folder, folder / "C.mlpackage", OPTIONS).package


@pytest.fixture(scope="module")
def beside(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in a side file, as above 2 GB; do not write into it."""
    folder = tmp_path_factory.mktemp("beside")
    options = dataclasses.replace(OPTIONS, weights_beside=True)
    done = export_coreml(int4_folder, folder / "C.mlpackage", options)
    assert done.package_bytes > done.checkpoint_bytes  # they are counted where they lie
    return done.package


def verify(package: Path, folder: Path) -> Verdict:
    return verify_package(package, folder, cases=["long"], greedy_tokens=0)


@pytest.mark.parametrize("which", ["good", "beside"])
def test_good_packages_pass(which: str, int4_folder: Path, request: pytest.FixtureRequest) -> None:
    package = request.getfixturevalue(which)
    report = verify_package(package, int4_folder)
    assert report.passed
    assert report.form == "custom-layer"
    assert [case.case for case in report.cases] == ["short", "long", "full", "chat"]
    assert all(case.logits.max < 1e-5 for case in report.cases)
    assert report.weights.tensors == 2 * (4 + 2 * 9) + 3
    assert report.greedy is not None and len(report.greedy.generated) == 24
    side = package.with_name("C-resources") / "weights.bin"
    assert side.is_file() == (which == "beside")


def test_all_logits(int4_folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(moe="custom-layer", context=32, prefill_block=8, logits="all")
    package = export_coreml(int4_folder, tmp_path / "a.mlpackage", options).package
    report = verify_package(package, int4_folder, greedy_tokens=4)
    assert report.passed
    assert all(case.rows == case.tokens for case in report.cases)


def test_manifest_and_command(
    int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "C.mlpackage")
    command = ["export", "coreml", str(int4_folder), out, "--moe", "custom-layer"]
    assert main([*command, "--context", "32", "--prefill-block", "8"]) == 0
    manifest = json.loads((tmp_path / "C-resources" / "manifest.json").read_text())
    assert manifest["form"] == "custom-layer"
    assert manifest["functions"]["main"]["inputs"]["key_cache"] == {
        "shape": [2, 2, 32, 16],
        "least": [2, 2, 32, 16],
        "dtype": "float32",
    }
    assert manifest["sizes"]["key_value_cache"] == 2 * 2 * 2 * 32 * 16 * 4
    assert main(["verify", out, "--against", str(int4_folder), "--case", "short"]) == 0
    assert main(["info", out]) == 0
    assert "MobileMoEExperts" in capsys.readouterr().out


# -- mutations --------------------------------------------------------------------------------


def edited(package: Path, kind: contract.LayerClass, edit: Callable) -> None:
    """Apply `edit` to the custom parameters of the last layer of a class."""
    path = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    layers = [x for x in spec.neuralNetwork.layers if x.custom.className == kind.name]
    edit(layers[-1].custom)
    path.write_bytes(spec.SerializeToString())


def entry(kind: contract.LayerClass, name: str) -> int:
    return [e.name for e in kind.entries].index(name)


def in_bytes(kind: contract.LayerClass, name: str, field: str, dtype: type, change: Callable):
    def mutate(package: Path) -> None:
        def edit(custom) -> None:
            weight = custom.weights[entry(kind, name)]
            array = np.frombuffer(getattr(weight, field), dtype).copy()
            array[3] = change(array[3])
            setattr(weight, field, array.tobytes())

        edited(package, kind, edit)

    return mutate


def in_floats(kind: contract.LayerClass, name: str, change: float, at: int = 3):
    def mutate(package: Path) -> None:
        def edit(custom) -> None:
            custom.weights[entry(kind, name)].floatValue[at] += change

        edited(package, kind, edit)

    return mutate


def swap_gate_and_up(package: Path) -> None:
    def edit(custom) -> None:
        for part, field in (("codes", "rawValue"), ("scales", "float16Value")):
            gate = custom.weights[entry(contract.EXPERTS, f"shared_gate_{part}")]
            up = custom.weights[entry(contract.EXPERTS, f"shared_up_{part}")]
            first, second = getattr(gate, field), getattr(up, field)
            setattr(gate, field, second)
            setattr(up, field, first)

    edited(package, contract.EXPERTS, edit)


MUTATIONS = {
    "scale": in_bytes(contract.ATTENTION, "o_scales", "float16Value", np.float16, lambda s: -s),
    "nibble": in_bytes(contract.ATTENTION, "q_codes", "rawValue", np.uint8, lambda b: b ^ 0x80),
    "router bias": in_floats(contract.EXPERTS, "expert_bias", 0.5),
    "period": in_floats(contract.ATTENTION, "periods", 2.0, at=0),
    "norm": in_floats(contract.HEAD, "norm", 1.0),
    "gate and up": swap_gate_and_up,
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_weights_and_logits_both_catch(
    good: Path, int4_folder: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(good, tmp_path / "C.mlpackage")
    MUTATIONS[name](tmp_path / "C.mlpackage")
    report = verify(tmp_path / "C.mlpackage", int4_folder)
    assert not report.weights.passed
    assert not report.cases[0].passed


@pytest.mark.parametrize(
    ("kind", "parameter", "value", "shows"),
    [
        (contract.EXPERTS, "weight_scale", 2.0, True),
        (contract.EXPERTS, "norm_eps", 1.01e-5, False),
        (contract.ATTENTION, "qk_norm_eps", 1.1e-5, False),
        (contract.ATTENTION, "score_scale", 0.2500001, False),
        (contract.HEAD, "group_size", 64, False),
    ],
)
def test_a_wrong_parameter(
    good: Path,
    int4_folder: Path,
    tmp_path: Path,
    kind: Any,
    parameter: str,
    value: Any,
    shows: bool,
) -> None:
    shutil.copytree(good, tmp_path / "C.mlpackage")

    def edit(custom) -> None:
        field = "intValue" if isinstance(value, int) else "doubleValue"
        setattr(custom.parameters[parameter], field, value)

    edited(tmp_path / "C.mlpackage", kind, edit)
    report = verify(tmp_path / "C.mlpackage", int4_folder)
    assert any(parameter in problem for problem in report.weights.problems)
    assert report.cases[0].passed != shows


def test_layers_that_stand_elsewhere(good: Path, int4_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "C.mlpackage")

    def edit(custom) -> None:
        custom.parameters["layer"].intValue = 0

    edited(tmp_path / "C.mlpackage", contract.EXPERTS, edit)
    with pytest.raises(UserError, match="layers are not those of an export"):
        verify(tmp_path / "C.mlpackage", int4_folder)


def test_a_changed_side_file_is_not_used(beside: Path, int4_folder: Path, tmp_path: Path) -> None:
    for path in beside.parent.iterdir():
        shutil.copytree(path, tmp_path / path.name)
    side = tmp_path / "C-resources" / "weights.bin"
    raw = bytearray(side.read_bytes())
    raw[20_000] ^= 1
    side.write_bytes(raw)
    with pytest.raises(UserError, match="checksum"):
        verify(tmp_path / "C.mlpackage", int4_folder)
    side.unlink()
    with pytest.raises(UserError, match="missing"):
        verify(tmp_path / "C.mlpackage", int4_folder)
