"""What a proof consists of, and about how long each part takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.verify.calls import Call, plan
from mobilemoe_mlx.verify.cases import CASES, Sizes, make_case
from mobilemoe_mlx.verify.saved_export import SavedExport

FILES_AND_WEIGHTS, GREEDY = "files and weights", "greedy text"

# On two cores with OpenBLAS (docs/numerics.md, "How long it takes").
_SECONDS_PER_WEIGHT_BYTE = 8e-9  # to read, hash and compare, and to load MLX's model
_SECONDS_PER_PRODUCT = 4e-11  # of MLX's model: tokens times active parameters


class Job(NamedTuple):
    """One part of a proof: a case in one arithmetic, the greedy text, or files and weights."""

    case: str
    arithmetic: Arithmetic | None
    seconds: float

    @property
    def text(self) -> str:
        """What is said while it runs."""
        if self.case in CASES:
            return f"{self.case} in {self.arithmetic} arithmetic"
        return self.case


def list_jobs(
    saved: SavedExport,
    checkpoint: Checkpoint,
    cases: Sequence[str],
    prompt: int,
    greedy_tokens: int,
    seed: int,
) -> list[Job]:
    """All parts in the order in which they are done.

    `prompt`: tokens of the greedy text's prompt; `greedy_tokens`: how far it is continued.
    """
    args = checkpoint.args
    sizes = Sizes(args, saved.block, saved.context)
    nbytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    jobs = [Job(FILES_AND_WEIGHTS, None, nbytes * _SECONDS_PER_WEIGHT_BYTE)]
    for arithmetic in saved.arithmetics:
        for name in cases:
            # Rounding has no part in how experts are sorted.
            if name == "routing" and not (saved.takes_scores and arithmetic == "float32"):
                continue
            calls = list(make_case(name, sizes, seed).calls(sizes))
            jobs.append(Job(name, arithmetic, _seconds(saved, args, arithmetic, calls)))
        # In float32 if it can be, where a text parts from MLX's at exact ties alone.
        if arithmetic == saved.arithmetics[0] and greedy_tokens:
            total = min(prompt + greedy_tokens, saved.context)
            calls = list(plan(prompt, total, saved.block, saved.context))
            jobs.append(Job(GREEDY, arithmetic, _seconds(saved, args, arithmetic, calls)))
    return jobs


def not_tried(saved: SavedExport, jobs: Sequence[Job]) -> tuple[str, ...]:
    """The cases that could have been tried, and were not asked for."""
    tried = {job.case for job in jobs}
    possible = [name for name in CASES if name != "routing" or saved.takes_scores]
    return tuple(name for name in (*possible, GREEDY) if name not in tried)


def call_seconds(saved: SavedExport, args: ModelArgs, arithmetic: Arithmetic, call: Call) -> float:
    """About how long one call takes, in the export and in MLX."""
    products = call.length * account(args).active_parameters
    return saved.seconds(args, arithmetic, call) + products * _SECONDS_PER_PRODUCT


def _seconds(
    saved: SavedExport, args: ModelArgs, arithmetic: Arithmetic, calls: Sequence[Call]
) -> float:
    return sum(call_seconds(saved, args, arithmetic, call) for call in calls)
