"""A package in Core ML itself, on a Mac, and the code that drives it, anywhere.

The tests marked `macos` need macOS 15. The others run the same driver with functions that look like
coremltools' loaded models and are backed by the numpy evaluator.
"""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coremltools as ct
import mlx.core as mx
import numpy as np
import pytest
from small_model import small_args

from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.export.coreml.package_info import describe_package
from mobilemoe_mlx.mil.evaluator import Evaluator
from mobilemoe_mlx.mil.program import read_package
from mobilemoe_mlx.numerics.measures import TensorError
from mobilemoe_mlx.numerics.tolerance import limit
from mobilemoe_mlx.verify.calls import plan
from mobilemoe_mlx.verify.coreml.core_ops_session import CoreOpsSession

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "coreml_on_device.py"
CONTEXT, BLOCK = 64, 16
PROMPT, TOTAL = 59, 63  # three whole blocks and one that would reach beyond the context

on_a_mac = pytest.mark.skipif(sys.platform != "darwin", reason="needs Core ML")


@pytest.fixture(scope="module")
def driver() -> Any:
    """benchmarks/coreml_on_device.py as a module."""
    spec = importlib.util.spec_from_file_location("coreml_on_device", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coreml_on_device"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "checkpoint"
    write_random_checkpoint(folder, small_args(), seed=7, quantized=True)
    return folder


@pytest.fixture(scope="module", params=["last", "all"])
def package(request: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packages") / "Small.mlpackage"
    options = ExportOptions(context=CONTEXT, prefill_block=BLOCK, logits=request.param)
    export_coreml(checkpoint, path, options)
    return path


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return np.random.default_rng(3).integers(small_args().vocab_size, size=TOTAL).tolist()


def logits_of(fed: Any, tokens: list[int]) -> dict[int, np.ndarray]:
    """Position -> logits, with the first PROMPT tokens in blocks and the others one by one."""
    fed.reset()
    out: dict[int, np.ndarray] = {}
    for call in plan(PROMPT, len(tokens), BLOCK, CONTEXT):
        end = call.start + call.length
        rows = fed.feed(tokens[call.start : end], call.start, call.is_decode)
        rows = getattr(rows, "logits", rows)  # a session returns a Step
        out |= {end - len(rows) + i: row for i, row in enumerate(rows)}
    return out


# -- Anywhere: the driver ------------------------------------------------------------------------


class EvaluatedState:
    """coremltools' MLState over the evaluator's arrays; reads and writes in float32 as it does."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def read_state(self, name: str) -> np.ndarray:
        return self.arrays[name].astype(np.float32)

    def write_state(self, name: str, value: np.ndarray) -> None:
        assert value.dtype == np.float32
        self.arrays[name][...] = value


class EvaluatedFunction:
    """One function of a package, in the place of coremltools' CompiledMLModel."""

    def __init__(self, evaluator: Evaluator, name: str) -> None:
        self.evaluator, self.name = evaluator, name

    def make_state(self) -> EvaluatedState:
        return EvaluatedState(self.evaluator.new_state(self.name))

    def predict(self, data: Any, state: Any = None) -> dict[str, np.ndarray]:
        return self.evaluator.run(self.name, data, state.arrays)


def evaluated(package: Path) -> dict[str, EvaluatedFunction]:
    evaluator = Evaluator(read_package(package), "declared")
    return {name: EvaluatedFunction(evaluator, name) for name in ("prefill", "decode")}


def test_the_driver_feeds_what_a_verified_session_feeds(
    driver: Any, package: Path, tokens: list[int]
) -> None:
    session = CoreOpsSession(read_package(package), small_args(), "declared")
    expected = logits_of(session, tokens)
    info = describe_package(package)
    for sharing in driver.SHARING:
        device = driver.DevicePackage(info, evaluated(package), sharing)
        for _ in range(2):  # a reset leaves nothing of the first time
            measured = logits_of(device, tokens)
            assert sorted(measured) == sorted(expected)
            for position, row in expected.items():
                np.testing.assert_array_equal(measured[position], row)


def test_two_states_without_a_copy_give_other_logits(
    driver: Any, package: Path, tokens: list[int]
) -> None:
    functions = evaluated(package)
    device = driver.DevicePackage(describe_package(package), functions, "prefill")
    shared = logits_of(device, tokens)[PROMPT]
    device.reset()
    device._states["decode"] = functions["decode"].make_state()
    for call in plan(PROMPT, PROMPT, BLOCK, CONTEXT):
        device.feed(tokens[call.start : call.start + call.length], call.start, call.is_decode)
    apart = device.feed([tokens[PROMPT]], PROMPT, True)[-1]
    assert TensorError.between(apart[None], shared[None]).mean > 10 * limit("declared", 3).value


def test_it_measures(driver: Any, package: Path) -> None:
    measured = driver.measure(
        package, "ALL", prompt=20, generate=3, repeats=1, load=lambda path, *_: evaluated(path)
    )
    assert set(measured) == set(driver.COLUMNS)
    assert all(value > 0 for value in measured.values())
    assert measured["prefill_tokens_per_s"] == pytest.approx(20 / measured["first_token_s"])
    lines = driver.table({"ALL": measured, "CPU_ONLY": None}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "failed" in lines[-1]


@pytest.mark.skipif(sys.platform == "darwin", reason="it runs there")
def test_it_says_that_it_needs_a_mac(package: Path) -> None:
    command = [sys.executable, str(BENCHMARK), str(package)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "run this on a Mac with macOS 15" in done.stderr
    assert "Traceback" not in done.stderr


def test_coremltools_has_what_the_driver_calls(driver: Any) -> None:
    inspect.signature(ct.models.CompiledMLModel).bind("model", ct.ComputeUnit.ALL, "prefill")
    inspect.signature(ct.models.CompiledMLModel.predict).bind(None, {}, None)
    inspect.signature(ct.models.CompiledMLModel.make_state).bind(None)
    inspect.signature(ct.models.utils.compile_model).bind("package", "compiled")
    inspect.signature(ct.models.model.MLState.read_state).bind(None, "key_cache")
    inspect.signature(ct.models.model.MLState.write_state).bind(None, "key_cache", None)
    assert {unit.name for unit in ct.ComputeUnit} == set(driver.UNITS)


# -- On a Mac: Core ML ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL"])
def loaded(
    request: Any, driver: Any, package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The package's functions for one choice of compute units."""
    driver.require_mac()
    yield driver.load_functions(package, request.param, tmp_path_factory.mktemp("compiled"))


@pytest.mark.macos
@on_a_mac
@pytest.mark.parametrize("sharing", ["prefill", "decode", "copied"])
def test_core_ml_computes_what_the_evaluator_and_mlx_compute(
    driver: Any,
    package: Path,
    checkpoint: Path,
    tokens: list[int],
    loaded: Any,
    sharing: str,
) -> None:
    device = driver.DevicePackage(describe_package(package), loaded, sharing)
    measured = logits_of(device, tokens)
    session = CoreOpsSession(read_package(package), small_args(), "declared")
    evaluated_ = logits_of(session, tokens)
    model = load_model(checkpoint, dtype=mx.float32)
    reference = np.array(model(mx.array([tokens]))[0])
    rows = sorted(evaluated_)
    assert sorted(measured) == rows
    ours = np.stack([measured[row] for row in rows])
    # Core ML's order of float16 roundings is its own: both references get the float16 limit.
    allowed = limit("declared", small_args().num_hidden_layers)
    for expected in (np.stack([evaluated_[row] for row in rows]), reference[rows]):
        error = TensorError.between(ours, expected)
        assert getattr(error, allowed.measure) <= allowed.value


@pytest.mark.macos
@on_a_mac
def test_xcode_compiles_the_custom_layer_package(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "Layers.mlpackage"
    options = ExportOptions(context=CONTEXT, prefill_block=BLOCK, moe="custom-layer")
    export_coreml(checkpoint, path, options)
    (tmp_path / "compiled").mkdir()
    command = ["xcrun", "coremlcompiler", "compile", str(path), str(tmp_path / "compiled")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "compiled").glob("*.mlmodelc"))


@pytest.mark.macos
@on_a_mac
def test_the_benchmark_prints_a_line_for_each_choice_of_units(package: Path) -> None:
    command = [sys.executable, str(BENCHMARK), str(package), "--generate", "4", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
