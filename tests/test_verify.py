"""`mobilemoe verify`: a good package passes, and every wrong one is caught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.proto import Model_pb2

from mobilemoe_mlx.cli import verify as verify_command
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.compare.measures import TensorError
from mobilemoe_mlx.compare.values import LayerValues, Trace
from mobilemoe_mlx.coreml import moe_lowering
from mobilemoe_mlx.coreml.options import ExportOptions
from mobilemoe_mlx.coreml.package import export_coreml
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.verify.cases import CASES, Case, CaseReport, compare_case
from mobilemoe_mlx.verify.greedy import GreedyReport
from mobilemoe_mlx.verify.report import VerifyReport
from mobilemoe_mlx.verify.session import Call, chat_plan, plan
from mobilemoe_mlx.verify.tolerance import FLOAT16_ROUNDING, limit
from mobilemoe_mlx.verify.verify import verify_package
from mobilemoe_mlx.verify.weight_file import WeightFile

# A context that is no multiple of the block: the last block has to start earlier.
OPTIONS = ExportOptions(context=53, prefill_block=16)


@pytest.fixture(scope="module")
def good(int4_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the INT4 fixture; do not write into it."""
    folder = tmp_path_factory.mktemp("good")
    return export_coreml(int4_folder, folder / "S.mlpackage", OPTIONS).package


@pytest.fixture(scope="module")
def report(good: Path, int4_folder: Path) -> VerifyReport:
    return verify_package(good, int4_folder)


def test_a_good_package_passes(report: VerifyReport) -> None:
    assert report.passed
    assert "proved" in report.text()
    assert report.files.checked > 5
    # 2 layers x (5 vectors and matrices without scales + 9 packed with scales) + embedding + norm
    assert report.weights.tensors == 2 * (4 + 2 * 9) + 3
    names = [(case.arithmetic, case.case) for case in report.cases]
    assert names == [
        *(("float32", case) for case in ("short", "long", "full", "chat", "routing")),
        *(("declared", case) for case in ("short", "long", "full", "chat")),
    ]


def test_float32_arithmetic_leaves_nothing_to_hide_behind(report: VerifyReport) -> None:
    for case in report.cases:
        error = case.logits.max
        # The two arithmetics are told apart: rounding shows in one and not in the other.
        assert error < 1e-5 if case.arithmetic == "float32" else error > 1e-5


def test_prompts_and_decoding_reach_the_end_of_the_context(report: VerifyReport) -> None:
    full = [case for case in report.cases if case.case == "full"]
    assert all(case.tokens == OPTIONS.context for case in full)
    assert all(case.decoded == 4 for case in full)
    short = next(case for case in report.cases if case.case == "short")
    long = next(case for case in report.cases if case.case == "long")
    block = OPTIONS.prefill_block
    assert short.tokens - short.decoded < block < 2 * block < long.tokens - long.decoded


def test_greedy_text_is_the_same(report: VerifyReport) -> None:
    assert report.greedy is not None
    assert report.greedy.generated == report.greedy.expected
    assert len(report.greedy.generated) == 24


def test_all_logits_are_compared(int4_folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(context=32, prefill_block=8, logits="all")
    package = export_coreml(int4_folder, tmp_path / "a.mlpackage", options).package
    report = verify_package(package, int4_folder, greedy_tokens=4)
    assert report.passed
    assert all(case.rows == case.tokens for case in report.cases)


def test_a_rounded_bf16_checkpoint(bf16_folder: Path, tmp_path: Path) -> None:
    package = export_coreml(bf16_folder, tmp_path / "b.mlpackage", OPTIONS, quantize=True).package
    assert verify_package(package, bf16_folder, cases=["short"], greedy_tokens=4).passed


def test_a_package_for_ios_26(int4_folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(context=32, prefill_block=8, target="iOS26")
    package = export_coreml(int4_folder, tmp_path / "n.mlpackage", options).package
    assert verify_package(package, int4_folder, cases=["long"], greedy_tokens=4).passed


# -- mutations --------------------------------------------------------------------------------


def spec_path(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def operations(spec: Model_pb2.Model, function: str):
    return next(iter(spec.mlProgram.functions[function].block_specializations.values())).operations


def place_of(package: Path, name: str, key: str) -> tuple[Path, int]:
    """The weight file, and the first byte there of constant `name` (`key`: val, data or scale)."""
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(package).read_bytes())
    (op,) = [o for o in operations(spec, "decode") if o.outputs and o.outputs[0].name == name]
    value = op.attributes[key] if key == "val" else op.inputs[key].arguments[0].value
    path = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    return path, WeightFile(path).blob(value.blobFileValue.offset).data_offset


def change(
    package: Path, name: str, key: str, dtype: type, edit: Callable, count: int = 1, at: int = 0
) -> None:
    """Apply `edit` to `count` elements of a constant, from element `at`, in the weight file."""
    path, offset = place_of(package, name, key)
    raw = bytearray(path.read_bytes())
    view = np.frombuffer(raw, dtype, count, offset + at * np.dtype(dtype).itemsize)
    view[:] = edit(view.copy())
    path.write_bytes(raw)


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


def edit_program(package: Path, edit: Callable, functions: tuple[str, ...]) -> None:
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(package).read_bytes())
    for function in functions:
        edit(operations(spec, function))
    spec_path(package).write_bytes(spec.SerializeToString())


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


@pytest.fixture
def mutable(good: Path, tmp_path: Path) -> Path:
    """A copy of the package alone: no checksum may be what catches a mutation."""
    shutil.copytree(good, tmp_path / "S.mlpackage")
    return tmp_path / "S.mlpackage"


def float32_case(report: VerifyReport) -> CaseReport:
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
    assert "FAIL weights" in report.text() and "FAIL long, float32" in report.text()


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
    assert "layer 0: hidden max" in report.text()


def test_checksums_catch_too(good: Path, int4_folder: Path, tmp_path: Path) -> None:
    for path in good.parent.iterdir():
        shutil.copytree(path, tmp_path / path.name)
    (tmp_path / "S-resources" / "tokenizer.json").write_text("{}")
    (tmp_path / "S.mlpackage" / "Data" / "stowaway").write_text("x")
    (tmp_path / "S-resources" / "chat_template.jinja").unlink()
    report = verify_package(tmp_path / "S.mlpackage", int4_folder, cases=[], greedy_tokens=0)
    problems = "\n".join(report.files.problems)
    assert not report.passed
    assert "tokenizer.json has" in problems
    assert "stowaway is in the package" in problems
    assert "chat_template.jinja is missing" in problems


def with_resources(package: Path, folder: Path) -> Path:
    """A copy of an export, package and resources, in `folder`."""
    for path in package.parent.iterdir():
        shutil.copytree(path, folder / path.name)
    return folder / package.name


@pytest.mark.parametrize(
    ("name", "value"), [("context", 54), ("logits", "all"), ("tokens", {"bos": 1, "eos": [0]})]
)
def test_the_manifest_must_be_of_this_package(
    good: Path, int4_folder: Path, tmp_path: Path, name: str, value: object
) -> None:
    """An app feeds what the manifest says, which no checksum covers."""
    package = with_resources(good, tmp_path)
    path = tmp_path / "S-resources" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {name: value}))
    report = verify_package(package, int4_folder, cases=[], greedy_tokens=0)
    assert not report.passed
    assert any(f"manifest.json says {name}" in problem for problem in report.files.problems)


def test_the_description_must_be_of_this_program(mutable: Path, int4_folder: Path) -> None:
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(mutable).read_bytes())
    spec.description.metadata.userDefined["mobilemoe.prefill_block"] = "32"
    spec_path(mutable).write_bytes(spec.SerializeToString())
    with pytest.raises(UserError, match="says of itself prefill_block 32, but its program is of 1"):
        verify_package(mutable, int4_folder)


def test_weights_that_nothing_uses_are_found(mutable: Path, int4_folder: Path) -> None:
    path, offset = place_of(mutable, "layers_1_moe_norm", "val")
    raw = bytearray(path.read_bytes())
    blob = raw[offset - 64 : offset + 256]
    blob[16:24] = (len(raw) + 64).to_bytes(8, "little")  # where its data is
    raw[0:4] = (int.from_bytes(raw[0:4], "little") + 1).to_bytes(4, "little")
    path.write_bytes(raw + blob)
    report = verify_package(mutable, int4_folder, cases=[], greedy_tokens=0)
    assert report.weights.problems == (
        f"weight.bin has 256 bytes at {len(raw)} that no operation uses",
    )


def test_a_package_without_its_weight_file(mutable: Path, int4_folder: Path) -> None:
    shutil.rmtree(spec_path(mutable).with_name("weights"))
    with pytest.raises(UserError, match="without its weight file"):
        verify_package(mutable, int4_folder)


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


def test_layers_are_judged_where_logits_do_not_show() -> None:
    """Not all tokens of a block have logits, and not all layers reach those that do."""
    random = np.random.default_rng(0)
    scores = np.tile(np.array([0.9, 0.5, 0.1], np.float32), (8, 1))
    experts = np.tile(np.array([0, 1]), (8, 1))
    hidden = random.normal(size=(8, 4)).astype(np.float32)
    logits = random.normal(size=(1, 32)).astype(np.float32)
    reference = Trace([LayerValues(hidden, scores, experts)], logits)
    for wrong in (
        LayerValues(hidden + np.float32(1e-3) * (np.arange(8) == 5)[:, None], scores, experts),
        LayerValues(hidden, scores + np.float32(1e-4), experts),
    ):
        case = Case("short", [0] * 8, 4)
        measured = Trace([wrong], logits)
        report = compare_case(case, measured, reference, [7], "float32")
        assert report.judged == 0 and not report.passed
        assert compare_case(case, reference, reference, [7], "float32").passed


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


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda spec: setattr(spec.description, "defaultFunctionName", "x"), "default function"),
        (lambda spec: renamed(spec, "value_cache", "values"), "value_cache is None"),
        (lambda spec: renamed(spec, "key_cache", "keys"), "no tokens or no key_cache"),
        (lambda spec: renamed(spec, "tokens", "ids"), "no tokens or no key_cache"),
        (lambda spec: renamed(spec, "logits", "scores"), "logits is None"),
        (lambda spec: renamed(spec, "layers_1_hidden", "h"), "layers_1_hidden is None"),
    ],
)
def test_another_interface(
    mutable: Path, int4_folder: Path, edit: Callable[[Any], None], words: str
) -> None:
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(mutable).read_bytes())
    edit(spec)
    spec_path(mutable).write_bytes(spec.SerializeToString())
    with pytest.raises(UserError, match=words):
        verify_package(mutable, int4_folder)


def renamed(spec: Any, old: str, new: str) -> None:
    """Everywhere in both functions and their descriptions."""
    for described in spec.description.functions:
        for feature in (*described.input, *described.output, *described.state):
            feature.name = new if feature.name == old else feature.name
    for function in spec.mlProgram.functions.values():
        for value in function.inputs:
            value.name = new if value.name == old else value.name
        for block in function.block_specializations.values():
            block.outputs[:] = [new if name == old else name for name in block.outputs]
            for op in block.operations:
                for output in op.outputs:
                    output.name = new if output.name == old else output.name
                for argument in op.inputs.values():
                    for binding in argument.arguments:
                        binding.name = new if binding.name == old else binding.name


# -- greedy text -------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "passes"), [(1e-3, True), (7.0, False)])
def test_greedy_texts_part_at_near_ties_only(gap: float, passes: bool) -> None:
    """One wrong logit of 128,256 does not show in their mean error."""
    error = TensorError(max=1e-3, mean=1e-4, cosine=1.0)
    report = GreedyReport(4, (1, 2), (1, 3), error, gap, limit("declared", 20))
    assert report.passed == passes


# -- differences in routing --------------------------------------------------------------------


def routed_otherwise(gap: float, later_error: float) -> CaseReport:
    """Of 8 tokens the fourth takes another second expert, by a gap of `gap` in its score.

    The logits of the tokens after it differ by `later_error`.
    """
    random = np.random.default_rng(0)
    scores = np.tile(np.array([0.9, 0.5 + gap, 0.5, 0.1], np.float32), (8, 1))
    experts = np.tile(np.array([0, 1]), (8, 1))
    hidden = random.normal(size=(8, 4)).astype(np.float32)
    logits = random.normal(size=(8, 32)).astype(np.float32)
    other_experts, other_logits = experts.copy(), logits.copy()
    other_experts[3, 1] = 2
    other_logits[4:] += np.float32(later_error)
    reference = Trace([LayerValues(hidden, scores, experts)], logits)
    measured = Trace([LayerValues(hidden, scores, other_experts)], other_logits)
    case = Case("short", [0] * 8, 4)
    return compare_case(case, measured, reference, list(range(8)), "float32")


def test_a_near_tie_may_fall_otherwise() -> None:
    report = routed_otherwise(gap=1e-6, later_error=1e-3)
    assert report.passed
    assert report.judged_rows == 3


def test_a_clear_choice_may_not() -> None:
    assert not routed_otherwise(gap=1e-3, later_error=0.0).passed


def test_a_near_tie_hides_no_mistake_behind_it() -> None:
    assert not routed_otherwise(gap=1e-6, later_error=0.1).passed


# -- the command and its mistakes -------------------------------------------------------------


def test_command(
    good: Path, int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    command = ["verify", str(good), "--against", str(int4_folder), "--case", "short"]
    assert main([*command, "--greedy-tokens", "2", "--json", str(path)]) == 0
    assert "bit for bit" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content["passed"] and content["cases"][0]["passed"]
    assert content["cases"][0]["limit"]["value"] == 1e-4


def test_the_command_offers_the_cases_that_there_are() -> None:
    """It names them itself, so that its help needs no seconds of imports."""
    assert verify_command.CASES == CASES


def test_command_fails_for_a_wrong_package(mutable: Path, int4_folder: Path) -> None:
    one_nibble(mutable)
    command = ["verify", str(mutable), "--against", str(int4_folder), "--case", "short"]
    assert main(command) == 1


def test_another_model(good: Path, bf16_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bf16_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 1234.0}))
    with pytest.raises(UserError, match=r"rope_theta is 500000\.0 in the package and 1234\.0"):
        verify_package(good, other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cases": ["shrt"]}, "did you mean 'short'"),
        ({"prompt": "word " * 100}, "context is 53"),
        ({"greedy_tokens": -1}, "0 or more"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_mistakes(good: Path, int4_folder: Path, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        verify_package(good, int4_folder, **changes)


def test_a_report_that_cannot_be_written_is_refused_at_once(
    good: Path, int4_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path, tmp_path / "no" / "report.json"):
        command = ["verify", str(good), "--against", str(int4_folder), "--json", str(path)]
        assert main(command) == 2
        captured = capsys.readouterr()
        assert "--json" in captured.err and "files and weights" not in captured.err


def test_the_smallest_context_needs_no_prompt(int4_folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(context=4, prefill_block=4)
    package = export_coreml(int4_folder, tmp_path / "s.mlpackage", options).package
    assert verify_package(package, int4_folder).passed


def test_not_a_package(tmp_path: Path, int4_folder: Path) -> None:
    with pytest.raises(UserError, match="not a Core ML package"):
        verify_package(tmp_path, int4_folder)


def test_a_foreign_package(good: Path, int4_folder: Path, mutable: Path) -> None:
    spec = Model_pb2.Model()
    spec.ParseFromString(spec_path(mutable).read_bytes())
    spec.description.metadata.userDefined.clear()
    spec_path(mutable).write_bytes(spec.SerializeToString())
    with pytest.raises(UserError, match="no export of ours"):
        verify_package(mutable, int4_folder)


# -- the plan of calls and the tolerance -------------------------------------------------------


def test_plan_by_example() -> None:
    def calls(*arguments: int) -> list[tuple[int, int, bool]]:
        return [tuple(call) for call in plan(*arguments)]

    assert calls(5, 7, 8, 32) == [(0, 5, False), (5, 1, True), (6, 1, True)]
    assert calls(20, 21, 8, 32) == [(0, 8, False), (8, 8, False), (16, 4, False), (20, 1, True)]
    # 29 + 8 would pass the end: the last block starts at 24 - 2 = 22.
    assert calls(29, 29, 8, 30)[-2:] == [(16, 8, False), (22, 7, False)]
    # A block of one token is a block.
    assert calls(9, 9, 8, 32) == [(0, 8, False), (8, 1, False)]


@pytest.mark.parametrize(("block", "context"), [(16, 64), (8, 30), (2, 4), (256, 2048)])
def test_a_chat_goes_everywhere(block: int, context: int) -> None:
    total = min(context, 2 * block)
    calls = list(chat_plan(total, block, context))
    covered: set[int] = set()
    for call in calls:
        assert set(range(call.start)) <= covered
        assert call.start + (1 if call.is_decode else block) <= context
        covered |= set(range(call.start, call.start + call.length))
    assert covered == set(range(total))
    assert calls[0] == Call(0, 1, is_decode=True)
    assert calls[1].length == 1 or (block == context and not calls[1].is_decode)
    blocks = [call for call in calls if not call.is_decode]
    assert block < 8 or {call.length for call in blocks} >= {1, block}
    assert block < 8 or len({call.start % block for call in blocks}) >= 3


@pytest.mark.parametrize("block", [1, 3, 8, 16])
@pytest.mark.parametrize("context", [16, 17, 30, 64])
def test_plan_covers_everything_within_the_context(block: int, context: int) -> None:
    for prompt in range(1, context + 1):
        calls = list(plan(prompt, context, block, context))
        covered: set[int] = set()
        for call in calls:
            assert set(range(call.start)) <= covered  # the cache has all that comes before
            assert call.start + (1 if call.is_decode else block) <= context
            covered |= set(range(call.start, call.start + call.length))
        assert covered == set(range(context))


def test_rounding_constant_is_what_rounding_does() -> None:
    x = np.random.default_rng(0).normal(size=1_000_000)
    error = (x.astype(np.float16).astype(np.float64) - x) / x
    assert np.sqrt(np.mean(error**2)) == pytest.approx(FLOAT16_ROUNDING, rel=0.05)
