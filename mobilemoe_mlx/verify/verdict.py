"""The verdict on a package: what was checked, how far it is from MLX, where they part."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from mobilemoe_mlx.numerics.json_values import json_values
from mobilemoe_mlx.verify.greedy import GreedyCheck
from mobilemoe_mlx.verify.judgement import CaseJudgement
from mobilemoe_mlx.verify.listed_files import FilesCheck
from mobilemoe_mlx.verify.weights_check import WeightsCheck


@dataclass(frozen=True)
class Verdict:
    """Everything `mobilemoe verify` prints and writes."""

    package: str  # paths
    checkpoint: str
    rounded: bool  # whether the checkpoint is BF16, and the weights are those of its rounding
    form: str
    files: FilesCheck
    weights: WeightsCheck
    cases: tuple[CaseJudgement, ...]
    greedy: GreedyCheck | None
    manifest: str  # where the manifest is looked for
    not_tried: tuple[str, ...]  # cases that were not asked for
    peak_intermediate_bytes: int | None  # of the largest call; None: the form does not say

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        greedy = self.greedy is None or self.greedy.passed
        cases = all(case.passed for case in self.cases)
        return self.files.passed and self.weights.passed and cases and greedy

    @property
    def proved(self) -> bool:
        """Whether every check passed, and the files could be checked at all."""
        return self.passed and self.files.manifest

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        content = dataclasses.asdict(self)
        for case, record in zip(self.cases, content["cases"], strict=True):
            record |= {"limit": case.limit._asdict(), "passed": case.passed}
        if self.greedy is not None:
            content["greedy"] |= {
                "limit": self.greedy.limit._asdict(),
                "passed": self.greedy.passed,
            }
        return cast(
            dict[str, Any], json_values({**content, "passed": self.passed, "proved": self.proved})
        )
