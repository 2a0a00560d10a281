"""`mobilemoe verify` catches every wrong package, however small the mistake."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from package_edits import change, edit_program

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml import moe_lowering
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.verify.judgement import CaseJudgement
from mobilemoe_mlx.verify.verdict import Verdict
from mobilemoe_mlx.verify.verdict_text import as_text
from mobilemoe_mlx.verify.verify import verify_package

OPTIONS = ExportOptions(context=53, prefill_block=16)


@pytest.fixture(scope="module")
def good(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the INT4 fixture; do not write into it."""
    folder = tmp_path_factory.mktemp("good")
    return export_coreml(int4_folder, folder / "S.mlpackage", OPTIONS).package


@pytest.fixture
def mutable(good: Path, tmp_path: Path) -> Path:
    """A copy of the package alone: no checksum may be what catches a mutation."""
    shutil.copytree(good, tmp_path / "S.mlpackage")
    return tmp_path / "S.mlpackage"


def one_scale(package: Path) -> None:
    change(package, "layers_1_o", "scale", np.float16, lambda s: -s, at=3)


def one_expert_scale(package: Path) -> None:
    change(package, "layers_0_down_scale", "val", np.float16, lambda s: s * np.float16(1.001))


def one_nibble(package: Path) -> None:
    change(package, "layers_0_qkv", "data", np.uint8, lambda b: b ^ 0x80, at=5)


def one_expert_nibble(package: Path) -> None:
    """The lowest bit of one code of one expert, which few tokens would show."""
    change(package, "layers_1_gate_up_codes", "val", np.uint8, lambda b: b ^ 0x01, at=77)


def one_router_bias(package: Path) -> None:
    """Of seven: so few that they are in the program, not in the weight file."""

    def edit(ops) -> None:
        (op,) = [o for o in ops if o.outputs and o.outputs[0].name == "layers_0_expert_bias"]
        op.attributes["val"].immediateValue.tensor.floats.values[2] += 0.5

    edit_program(package, edit, ("prefill", "decode"))


def one_rope_entry(package: Path) -> None:
    change(package, "rope_sin", "val", np.float32, lambda r: r + np.float32(0.5), at=8)


def one_norm_weight(package: Path) -> None:
    change(package, "layers_1_moe_norm", "val", np.float32, lambda w: w * 2, at=1)


def shared_gate_and_up(package: Path) -> None:
    """160 rows of the gate and 160 of the up projection, 64 columns each."""
    for key, dtype, row in (("data", np.uint8, 32), ("scale", np.float16, 2)):
        count = 2 * 160 * row
        change(
            package,
            "layers_0_shared_gate_up",
            key,
            dtype,
            lambda v: np.roll(v, len(v) // 2),
            count,
        )


def swap_outputs_of_a_split(ops) -> None:
    """gate, up = split(...) becomes up, gate."""
    split = next(op for op in ops if op.type == "split")
    first, second = split.outputs[0].name, split.outputs[1].name
    split.outputs[0].name, split.outputs[1].name = second, first


def swapped_in_decode(package: Path) -> None:
    edit_program(package, swap_outputs_of_a_split, ("decode",))


def swapped_in_prefill(package: Path) -> None:
    edit_program(package, swap_outputs_of_a_split, ("prefill",))


def lowest_scores_first(package: Path) -> None:
    def edit(ops) -> None:
        next(op for op in ops if op.type == "greater").type = "less"

    edit_program(package, edit, ("prefill", "decode"))


def nothing(ops) -> None:
    """The control of the mutations."""


IN_WEIGHTS = [
    one_scale,
    one_nibble,
    one_router_bias,
    one_rope_entry,
    one_norm_weight,
    shared_gate_and_up,
]
IN_WEIGHTS_ONLY = [one_expert_scale, one_expert_nibble]
IN_PROGRAM = [swapped_in_decode, swapped_in_prefill, lowest_scores_first]


def float32_case(report: Verdict) -> CaseJudgement:
    (case,) = [case for case in report.cases if case.arithmetic == "float32"]
    return case


def test_an_unchanged_copy_passes(mutable: Path, int4_folder: Path) -> None:
    edit_program(mutable, nothing, ("prefill", "decode"))
    report = verify_package(mutable, int4_folder, cases=["long"], greedy_tokens=0)
    assert report.passed
    assert not report.files.manifest


@pytest.mark.parametrize("mutate", IN_WEIGHTS)
def test_weights_and_logits_both_catch(
    mutable: Path, int4_folder: Path, mutate: Callable[[Path], None]
) -> None:
    mutate(mutable)
    report = verify_package(mutable, int4_folder, cases=["long"], greedy_tokens=0)
    assert not report.passed
    assert len(report.weights.problems) >= 1
    assert not float32_case(report).passed
    assert "FAIL weights" in as_text(report) and "FAIL long, float32" in as_text(report)


@pytest.mark.parametrize("mutate", IN_WEIGHTS_ONLY)
def test_weights_catch_what_logits_might_miss(
    mutable: Path, int4_folder: Path, mutate: Callable[[Path], None]
) -> None:
    mutate(mutable)
    report = verify_package(mutable, int4_folder, cases=["short"], greedy_tokens=0)
    assert not report.weights.passed
    assert not report.passed


@pytest.mark.parametrize("mutate", IN_PROGRAM)
def test_logits_catch_a_wrong_program(
    mutable: Path, int4_folder: Path, mutate: Callable[[Path], None]
) -> None:
    mutate(mutable)
    report = verify_package(mutable, int4_folder, cases=["long"], greedy_tokens=0)
    assert report.weights.passed
    assert not float32_case(report).passed
    # It says where they part.
    assert "layer 0: hidden max" in as_text(report)


@pytest.mark.parametrize("mutate", [swapped_in_decode, swapped_in_prefill])
@pytest.mark.parametrize("block", [2, 4])
@pytest.mark.parametrize("case", ["short", "long", "full"])
def test_every_case_of_the_smallest_context_runs_both_functions(
    int4_folder: Path, tmp_path: Path, mutate: Callable[[Path], None], block: int, case: str
) -> None:
    options = ExportOptions(context=4, prefill_block=block)
    package = export_coreml(int4_folder, tmp_path / "s.mlpackage", options).package
    assert verify_package(package, int4_folder, cases=[case], greedy_tokens=2, prompt="a").passed
    shutil.rmtree(tmp_path / "s-resources")
    mutate(package)
    report = verify_package(package, int4_folder, cases=[case], greedy_tokens=0, prompt="a")
    assert not report.passed


# -- what random tokens do not show -------------------------------------------------------------


def test_ties_are_tried(int4_folder: Path, tmp_path: Path) -> None:
    """The matrix of lower indices transposed: ties go to the higher one."""

    def higher_index(matrix: np.ndarray, diagonal: int) -> np.ndarray:
        return np.triu(matrix, -diagonal)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "tril", higher_index)
        package = export_coreml(int4_folder, tmp_path / "t.mlpackage", OPTIONS).package
    report = verify_package(package, int4_folder, cases=["long", "routing"], greedy_tokens=0)
    long, routing = report.cases[:2]
    assert long.passed  # random scores have no ties
    assert not routing.passed


@pytest.mark.parametrize("fewer", [1, 3])
def test_the_fullest_routing_is_tried(
    int4_folder: Path, tmp_path: Path, fewer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = moe_lowering.most_blocks
    options = ExportOptions(context=200, prefill_block=96)
    monkeypatch.setattr(moe_lowering, "most_blocks", lambda *sizes: most(*sizes) - fewer)
    package = export_coreml(int4_folder, tmp_path / "f.mlpackage", options).package
    try:
        report = verify_package(package, int4_folder, cases=["routing"], greedy_tokens=0)
    except UserError as error:  # a row beyond the blocks
        assert "indices reach" in str(error)
    else:
        assert not report.passed


def test_every_expert_is_tried_in_decode(mutable: Path, int4_folder: Path) -> None:
    def edit(ops) -> None:
        numbers = np.arange(7, dtype=np.float32).tolist()
        found = [
            op.attributes["val"].immediateValue.tensor.floats.values
            for op in ops
            if op.type == "const"
        ]
        (*_, indices) = [values for values in found if list(values) == numbers]
        indices[6] = 0.0

    edit_program(mutable, edit, ("decode",))
    report = verify_package(mutable, int4_folder, cases=["routing"], greedy_tokens=0)
    assert not report.passed


def test_a_right_constant_that_nothing_uses(mutable: Path, int4_folder: Path) -> None:
    """Beside it lies a wrong one, which is used."""

    def edit(ops) -> None:
        position, op = next(
            (i, o) for i, o in enumerate(ops) if o.outputs and o.outputs[0].name == "norm"
        )
        decoy = type(op)()
        decoy.CopyFrom(op)
        decoy.outputs[0].name = "used_norm"
        decoy.attributes["name"].immediateValue.tensor.strings.values[0] = "used_norm"
        for other in ops:
            for argument in other.inputs.values():
                for binding in argument.arguments:
                    if binding.name == "norm":
                        binding.name = "used_norm"
        ops.insert(position, decoy)

    edit_program(mutable, edit, ("decode",))
    report = verify_package(mutable, int4_folder, cases=[], greedy_tokens=0)
    assert report.weights.problems == ("decode: nothing uses norm",)


def test_biases_and_epsilons_are_checked(mutable: Path, int4_folder: Path) -> None:
    def edit(ops) -> None:
        for op in ops:
            if op.type == "rsqrt":
                name = op.inputs["epsilon"].arguments[0].name
                (constant,) = [o for o in ops if o.outputs and o.outputs[0].name == name]
                constant.attributes["val"].immediateValue.tensor.floats.values[0] = 1.01e-5
                return

    edit_program(mutable, edit, ("prefill",))
    report = verify_package(mutable, int4_folder, cases=[], greedy_tokens=0)
    (problem,) = report.weights.problems
    assert "prefill: " in problem and "epsilon" in problem
