"""The demo app's profile: what it shares is read by `mobilemoe bench --compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mobilemoe_mlx.bench.results import read_results
from mobilemoe_mlx.bench.table import as_text


def test_a_profile_is_compared_with(swift_test: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    swift_test("DemoViewModelsTests.ProfileTests", MOBILEMOE_PROFILE_JSON=str(file))
    results = read_results(file)
    assert results.model == "tiny" and sorted(results.engines[0].contexts) == [64, 256]
    assert results.device is not None and results.device["battery_at_start"] == 0.8
    text = as_text(results, results)
    assert "x1.00" in text
    assert "measured on Fake1,1, Test 1.0 (heat, from start to end: nominal, nominal" in text
