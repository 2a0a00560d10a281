"""The recomputed claims against what the paper says."""

from __future__ import annotations

import pytest

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.scaling.compare import claims, costed_models, table


def test_claims() -> None:
    models = costed_models(2048)
    found = {(claim.ours, claim.rival): claim for claim in claims(models)}
    olmoe = found["MobileMoE-M", "OLMoE-1B-7B"]
    assert olmoe.fewer_parameters == pytest.approx(0.60, abs=0.01)  # "up to 60 % fewer"
    assert not olmoe.misses
    small = found["MobileMoE-S", "MobileLLM-Pro"]
    assert 2 <= small.flops_ratio <= 4 and not small.misses  # "2 to 4 times fewer"
    assert small.score_difference == pytest.approx(46.5 - 47.0)
    # M is half as large again as the dense models of its score, so that half of the claim fails.
    assert found["MobileMoE-M", "Qwen3.5-2B"].misses == "memory"
    text = table(models, list(found.values()))
    assert "MobileMoE-S against MobileLLM-Pro" in text and "not the memory" in text


def test_all_are_compared_at_one_context() -> None:
    assert {each.accounting.context for each in costed_models(4096)} == {4096}
    for context in (0, 4097):
        with pytest.raises(UserError, match=f"{context} tokens: OLMoE-1B-7B takes 1 to 4096"):
            costed_models(context)
