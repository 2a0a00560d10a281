"""What `mobilemoe verify` feeds to a package, and how it judges what comes out."""

from __future__ import annotations

import numpy as np
import pytest

from mobilemoe_mlx.numerics.measures import TensorError
from mobilemoe_mlx.numerics.tolerance import FLOAT16_ROUNDING, Arithmetic, limit
from mobilemoe_mlx.numerics.values import LayerValues, Trace
from mobilemoe_mlx.verify.calls import Call, chat_plan, plan
from mobilemoe_mlx.verify.cases import Case
from mobilemoe_mlx.verify.greedy import GreedyCheck
from mobilemoe_mlx.verify.judgement import CaseJudgement, judge


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
        LayerValues(hidden, scores + np.float32(1e-3), experts),
    ):
        case = Case("short", [0] * 8, 4)
        measured = Trace([wrong], logits)
        report = judge(case, measured, reference, [7], "float32")
        assert report.judged == 0 and not report.passed
        assert judge(case, reference, reference, [7], "float32").passed


# -- greedy text -------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "passes"), [(1e-3, True), (7.0, False)])
def test_greedy_texts_part_at_near_ties_only(gap: float, passes: bool) -> None:
    """One wrong logit of 128,256 does not show in their mean error."""
    error = TensorError(max=1e-3, mean=1e-4, cosine=1.0)
    report = GreedyCheck(4, (1, 2), (1, 3), error, gap, limit("declared", 20))
    assert report.passed == passes


# -- differences in routing --------------------------------------------------------------------


def routed_otherwise(gap: float, later_error: float) -> CaseJudgement:
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
    return judge(case, measured, reference, list(range(8)), "float32")


def test_a_near_tie_may_fall_otherwise() -> None:
    report = routed_otherwise(gap=1e-6, later_error=1e-3)
    assert report.passed
    assert report.judged_rows == 3


def test_a_clear_choice_may_not() -> None:
    assert not routed_otherwise(gap=1e-3, later_error=0.0).passed


def test_a_near_tie_hides_no_mistake_behind_it() -> None:
    assert not routed_otherwise(gap=1e-6, later_error=0.1).passed


# -- numbers that are not finite ---------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", ["float32", "declared"])
@pytest.mark.parametrize("where", ["hidden", "scores", "logits"])
@pytest.mark.parametrize("of_reference", [False, True])
def test_what_is_not_finite_never_passes(
    arithmetic: Arithmetic, where: str, of_reference: bool
) -> None:
    """Not even behind a token routed otherwise, where no measure of a limit looks."""
    random = np.random.default_rng(0)
    scores = np.tile(np.array([0.9, 0.5, 0.5, 0.1], np.float32), (8, 1))
    hidden = random.normal(size=(8, 4)).astype(np.float32)
    logits = random.normal(size=(8, 32)).astype(np.float32)

    def trace(second_expert: int) -> Trace:
        experts = np.tile(np.array([0, 1]), (8, 1))
        experts[3, 1] = second_expert
        return Trace([LayerValues(hidden.copy(), scores.copy(), experts)], logits.copy())

    case = Case("short", [0] * 8, 4)
    measured, reference = trace(2), trace(1)
    assert judge(case, measured, reference, list(range(8)), arithmetic).passed
    broken = reference if of_reference else measured
    array = broken.logits if where == "logits" else getattr(broken.layers[0], where)
    array[3, 0] = np.inf if where == "scores" else np.nan
    judgement = judge(case, measured, reference, list(range(8)), arithmetic)
    assert not judgement.passed
    assert judgement.not_finite


def test_greedy_text_of_nan_never_passes() -> None:
    report = GreedyCheck(4, (0,), (0,), None, 0.0, limit("float32", 20), finite=False)
    assert not report.passed


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
