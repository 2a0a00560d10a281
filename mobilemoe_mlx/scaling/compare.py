"""The paper's comparison recomputed: what its models and their rivals cost, and what they score."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mobilemoe_mlx import text_table
from mobilemoe_mlx.accounting.cost import Accounting, cost
from mobilemoe_mlx.accounting.published import published_models
from mobilemoe_mlx.errors import UserError


@dataclass(frozen=True)
class Costed:
    """A published model with its cost at one context."""

    name: str
    score: float  # mean of fourteen base benchmarks, per cent, as published
    accounting: Accounting


@dataclass(frozen=True)
class Claim:
    """A statement of the paper about one pair, and the figures that are counted here."""

    ours: str
    rival: str
    says: str  # in the paper's words, shortened
    flops_ratio: float  # the rival's FLOPs per token over ours
    fewer_parameters: float  # share of the rival's total parameters that ours does without
    int4_ratio: float  # our INT4 bytes over the rival's
    score_difference: float  # ours less the rival's, points
    misses: str  # what these counts contradict; empty: the statement holds


_FEWER_FLOPS = "2 to 4 times fewer FLOPs at like accuracy and memory"
_FEWER_PARAMETERS = "up to 60 % fewer parameters, at least as good"

# Like memory: the paper calls S's 0.68 GB comparable with the 0.55 GB of MobileLLM-Pro. Like
# accuracy: a point less at most, S's half a point with room to spare.
_LIKE = 1.25

# Which pairs the paper's statements are about. It pairs the first by its INT4 size; the others are
# the rivals whose scores are nearest below.
_PAIRS = (
    ("MobileMoE-S", "MobileLLM-Pro", _FEWER_FLOPS),
    ("MobileMoE-M", "Qwen3.5-2B", _FEWER_FLOPS),
    ("MobileMoE-M", "SmolLM2-1.7B", _FEWER_FLOPS),
    ("MobileMoE-M", "OLMoE-1B-7B", _FEWER_PARAMETERS),
    ("MobileMoE-L", "OLMoE-1B-7B", _FEWER_PARAMETERS),
)


def costed_models(context: int) -> list[Costed]:
    """All published models at `context` tokens; raises UserError where one takes fewer."""
    models = published_models().values()
    narrow = min(models, key=lambda each: each.architecture.max_position_embeddings)
    most = narrow.architecture.max_position_embeddings
    if not 1 <= context <= most:
        raise UserError(
            f"A context of {context} tokens: {narrow.name} takes 1 to {most}, and all are compared "
            "at the same."
        )
    return [Costed(each.name, each.score, cost(each.architecture, context)) for each in models]


def claims(models: list[Costed]) -> list[Claim]:
    """The paper's statements, each with what is counted."""
    by_name = {each.name: each for each in models}
    found = []
    for ours, rival, says in _PAIRS:
        a, b = by_name[ours], by_name[rival]
        ratio = b.accounting.flops_per_token / a.accounting.flops_per_token
        fewer = 1 - a.accounting.total_parameters / b.accounting.total_parameters
        better = a.score - b.score
        memory = a.accounting.int4_bytes / b.accounting.int4_bytes
        if says == _FEWER_FLOPS:
            kept = {"FLOPs": 2 <= ratio <= 4, "score": better >= -1, "memory": memory <= _LIKE}
        else:
            kept = {"parameters": 0 < round(fewer, 2) <= 0.6, "score": better >= 0}
        found.append(
            Claim(
                ours=ours,
                rival=rival,
                says=says,
                flops_ratio=ratio,
                fewer_parameters=fewer,
                int4_ratio=memory,
                score_difference=better,
                misses=", ".join(what for what, holds in kept.items() if not holds),
            )
        )
    return found


def to_dict(models: list[Costed], found: list[Claim]) -> dict[str, Any]:
    """Both as plain JSON."""
    return {
        "models": [dataclasses.asdict(each) for each in models],
        "claims": [dataclasses.asdict(each) for each in found],
    }


def table(models: list[Costed], found: list[Claim]) -> str:
    """Both as text."""
    context = models[0].accounting.context
    rows = [
        [
            "",
            "score",
            "parameters",
            "active",
            "BF16",
            "INT4",
            f"FLOPs/token at {context:,}",
            "16-bit cache",
        ]
    ]
    for each in models:
        a = each.accounting
        rows.append(
            [
                each.name,
                f"{each.score:.1f}",
                text_table.count(a.total_parameters),
                text_table.count(a.active_parameters),
                text_table.size(a.bf16_bytes),
                text_table.size(a.int4_bytes),
                text_table.count(a.flops_per_token),
                text_table.size(a.kv_bytes["bfloat16"]),
            ]
        )
    lines = [text_table.columns(rows)]
    for says in (_FEWER_FLOPS, _FEWER_PARAMETERS):
        pairs = [
            ["", "FLOPs", "parameters", "INT4", "score", "holds"],
            *(
                [
                    f"{claim.ours} against {claim.rival}",
                    f"1/{claim.flops_ratio:.2f}",
                    f"{-claim.fewer_parameters:+.0%}",
                    f"x {claim.int4_ratio:.2f}",
                    f"{claim.score_difference:+.1f}",
                    f"not the {claim.misses}" if claim.misses else "yes",
                ]
                for claim in found
                if claim.says == says
            ),
        ]
        lines += ["", f'"{says}"', text_table.columns(pairs)]
    return "\n".join(lines)
