"""The polynomial exp and what is made of it, against float64 and against MLX's own."""

from __future__ import annotations

import math
import sys

import mlx.core as mx
import numpy as np
import pytest

from mobilemoe_mlx import linux_cpu
from mobilemoe_mlx.linux_cpu.exponential import _power as power
from mobilemoe_mlx.linux_cpu.exponential import logsumexp, sigmoid, softmax_parts, split

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mx.default_device().type != mx.DeviceType.cpu,
    reason="replaces MLX's own on the CPU of Linux only",
)


def exp(x: mx.array) -> np.ndarray:
    return np.array(power(*split(x)))


def test_exp_is_within_1e_6_of_float64_where_a_softmax_weight_matters():
    x = np.linspace(-30, 30, 400_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exp(mx.array(x)) / exact - 1).max() < 1e-6


def test_exp_over_all_of_float32():
    x = np.linspace(-87, 88, 400_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exp(mx.array(x)) / exact - 1).max() < 1e-6
    # Below float32's normal numbers it is 0.
    assert np.abs(exp(mx.array(np.linspace(-200, -87.4, 1000, dtype=np.float32)))).max() < 2e-38


@pytest.mark.parametrize(
    ("x", "expected"),
    [(0.0, 1.0), (-0.0, 1.0), (math.inf, math.inf), (-math.inf, 0.0), (1e30, math.inf), (-1e30, 0)],
)
def test_exp_at_the_ends(x: float, expected: float):
    # Enough of them that the vector loop and its rest are both run.
    found = exp(mx.full((37,), x))
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_a_nan_stays_a_nan_and_stays_alone():
    x = np.linspace(-5, 5, 37, dtype=np.float32)
    x[[3, 36]] = np.nan
    for function in (exp, lambda x: np.array(sigmoid(x))):
        found = function(mx.array(x))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(x))


def test_arrays_that_are_not_contiguous():
    x = mx.random.normal((6, 8))[:, 1::2].T
    np.testing.assert_allclose(exp(x), np.exp(np.array(x, np.float64)), rtol=1e-6)


def test_sigmoid_and_its_gradient():
    x = np.linspace(-60, 60, 20_001, dtype=np.float32)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(np.array(sigmoid(mx.array(x))), exact, rtol=1e-6)
    ends = sigmoid(mx.array([math.inf, -math.inf, 200.0, -200.0]))
    np.testing.assert_array_equal(np.array(ends), [1, 0, 1, 0])
    gradient = mx.grad(lambda x: (sigmoid(x) * mx.cos(x)).sum())(mx.array(x[8000:12000]))
    expected = mx.grad(lambda x: (mx.sigmoid(x) * mx.cos(x)).sum())(mx.array(x[8000:12000]))
    np.testing.assert_allclose(np.array(gradient), np.array(expected), atol=1e-6)


def test_logsumexp_and_its_gradient():
    x = mx.random.normal((5, 60), key=mx.random.key(0)) * 20
    wide = np.array(x, np.float64)
    top = wide.max(axis=-1, keepdims=True)
    exact = (np.log(np.exp(wide - top).sum(axis=-1, keepdims=True)) + top).squeeze(-1)
    np.testing.assert_allclose(np.array(logsumexp(x)), exact, rtol=1e-6)
    weights = mx.arange(5.0)
    gradient = mx.grad(lambda x: (logsumexp(x) * weights).sum())(x)
    expected = np.exp(wide - exact[:, None]) * np.arange(5)[:, None]
    np.testing.assert_allclose(np.array(gradient), expected, atol=1e-5)


def test_softmax_parts_with_entries_that_are_masked_out():
    x = np.full((2, 9), -np.inf, np.float32)
    x[0, :4] = [1, 2, 3, 4]
    x[1, 8] = -1000
    exponentials, total, top = (np.array(part) for part in softmax_parts(mx.array(x)))
    np.testing.assert_allclose(top, [[4], [-1000]])
    np.testing.assert_allclose(total, exponentials.sum(axis=-1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(exponentials[0, :4], np.exp([-3.0, -2, -1, 0]), rtol=1e-6)
    assert (exponentials[0, 4:] == 0).all() and (exponentials[1] == [0] * 8 + [1]).all()


def test_other_types_and_devices_keep_mlx_own(monkeypatch: pytest.MonkeyPatch):
    x = mx.random.normal((64,))
    for dtype in (mx.bfloat16, mx.float16):
        assert not linux_cpu.applies_to(x.astype(dtype))
        assert mx.array_equal(sigmoid(x.astype(dtype)), mx.sigmoid(x.astype(dtype)))
    assert linux_cpu.applies_to(x)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not linux_cpu.applies_to(x)
    assert mx.array_equal(sigmoid(x), mx.sigmoid(x))
    assert mx.array_equal(logsumexp(x), mx.logsumexp(x, axis=-1))
