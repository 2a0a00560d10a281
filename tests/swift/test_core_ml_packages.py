"""Exported packages run by the Swift module MobileMoECoreML, with Core ML stood in for.

Packages are exported as a user would; for those of custom layers the stand-in connects the module's
own classes as the package says, for ML Programs it answers from the CPU engine. Both must give
MLX's text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.proto import Model_pb2

from mobilemoe_mlx.engines import open_engine
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml

OPTIONS = {
    "blocks": ExportOptions(context=30, prefill_block=8),
    "all-logits": ExportOptions(context=30, prefill_block=7, logits="all"),
    "short": ExportOptions(context=4, prefill_block=2),
    "one-block": ExportOptions(context=16, prefill_block=16),
    "chat": ExportOptions(context=120, prefill_block=32),
    "layers": ExportOptions(
        moe="custom-layer", context=30, prefill_block=8, weights_beside=True, logits="all"
    ),
    "layers-last": ExportOptions(
        moe="custom-layer", context=120, prefill_block=16, weights_beside=True
    ),
}


def layers(package: Path) -> list[dict[str, Any]]:
    """The custom layers of a package, their parameters as texts."""
    model = Model_pb2.Model()
    [file] = package.glob("Data/*/*.mlmodel")
    model.ParseFromString(file.read_bytes())
    return [
        {
            "class": layer.custom.className,
            "parameters": {
                name: str(getattr(value, value.WhichOneof("value")))
                for name, value in layer.custom.parameters.items()
            },
            "inputs": list(layer.input),
            "outputs": list(layer.output),
        }
        for layer in model.neuralNetwork.layers
    ]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, int4_folder: Path) -> Path:
    """A folder of packages, and cases.json with prompts and MLX's greedy continuation of each."""
    home = tmp_path_factory.mktemp("packages")
    engine = open_engine(int4_folder, "mlx")
    rng = np.random.default_rng(11)
    cases = []
    for name, options in OPTIONS.items():
        package = export_coreml(int4_folder, home / f"{name}.mlpackage", options).package
        compiled = package.with_suffix(".mlmodelc")
        compiled.mkdir()
        block, context = options.prefill_block, options.context
        lengths = sorted({1, 2, block, min(block + 1, context - 1), context - 1} - {context})
        prompts = [rng.integers(3, engine.args.vocab_size, n).tolist() for n in lengths]
        greedy = []
        for prompt in prompts:
            session = engine.session()
            logits = session.feed(prompt)
            answer = [int(logits[-1].argmax())]
            while len(answer) < min(6, context - len(prompt)):
                answer.append(int(session.feed(answer[-1:])[-1].argmax()))
            greedy.append(answer)
        cases.append(
            {
                "checkpoint": str(int4_folder),
                "package": str(compiled),
                "block": block,
                "context": context,
                "allLogits": options.logits == "all",
                "prompts": prompts,
                "greedy": greedy,
                "layers": layers(package) if options.moe == "custom-layer" else None,
            }
        )
    (home / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    return home


@pytest.mark.skipif(sys.platform != "linux", reason="Core ML is stood in for on Linux alone")
def test_packages_give_the_text_of_mlx(packages: Path, swift_test: Callable[..., str]) -> None:
    swift_test("PackageTests", MOBILEMOE_PACKAGES=str(packages))
