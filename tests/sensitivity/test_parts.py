"""Parts of a model, rounded one by one: against the INT4 checkpoint and the accounting."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.quantized import fake_quantize_parameters
from mobilemoe_mlx.sensitivity.parts import Rounding, parts_of


@pytest.fixture
def rounding(bf16_folder: Path) -> Rounding:
    return Rounding(load_model(bf16_folder, mx.float32), "unclipped")


def values(rounding: Rounding) -> dict[str, np.ndarray]:
    return {name: np.array(w) for name, w in tree_flatten(rounding.model.parameters())}


def test_parts_are_all_that_int4_packs(rounding: Rounding) -> None:
    parts = parts_of(rounding.model)
    size = account(rounding.model.args)
    kept = size.total_parameters - sum(part.size for part in parts)
    assert sum(part.bf16_bytes for part in parts) + 2 * kept == size.bf16_bytes
    saved = sum(part.bf16_bytes - part.int4_bytes for part in parts)
    routers = 2 * 7 * 64  # two layers: of two bytes a number more in INT4 checkpoints
    assert size.bf16_bytes - saved + 2 * routers == size.int4_bytes
    names = [part.name for part in parts]
    assert len(set(names)) == len(parts) == 2 * 9 + 1
    assert {"embedding", "layer 1, experts.down_proj", "layer 0, q_proj"} < set(names)


def test_all_rounded_is_what_int4_computes(rounding: Rounding) -> None:
    """QAT's function on the whole tree makes the same of every tensor."""
    expected = dict(tree_flatten(fake_quantize_parameters(rounding.model.parameters())))
    with rounding.of(parts_of(rounding.model)):
        for name, found in values(rounding).items():
            assert np.array_equal(found, np.array(expected[name])), name


def test_one_is_rounded_and_all_is_put_back(rounding: Rounding) -> None:
    before = values(rounding)
    part = next(p for p in parts_of(rounding.model) if p.name == "layer 1, experts.down_proj")
    with rounding.of([part]):
        changed = [n for n, v in values(rounding).items() if not np.array_equal(v, before[n])]
    assert changed == ["model.layers.1.feed_forward.experts.down_proj.weight"]
    it = (mx.arange(7) == 3)[:, None, None]
    with rounding.of([part], lambda _, bf16, int4: mx.where(it, int4, bf16)):
        found = values(rounding)[part.parameter]
    assert [e for e in range(7) if not np.array_equal(found[e], before[part.parameter][e])] == [3]
    with pytest.raises(KeyboardInterrupt), rounding.of([part]):
        raise KeyboardInterrupt
    assert all(np.array_equal(v, before[name]) for name, v in values(rounding).items())
