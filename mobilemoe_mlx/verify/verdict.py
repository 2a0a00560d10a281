"""The verdict on a package: what was checked, how far it is from MLX, where they part."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from mobilemoe_mlx.numerics.json_values import json_values
from mobilemoe_mlx.numerics.measures import LayerComparison, TensorError
from mobilemoe_mlx.verify.greedy import GreedyCheck
from mobilemoe_mlx.verify.judgement import CaseJudgement
from mobilemoe_mlx.verify.listed_files import FilesCheck
from mobilemoe_mlx.verify.weights_check import WeightsCheck


@dataclass(frozen=True)
class Verdict:
    """Everything `mobilemoe verify` prints and writes."""

    package: str
    checkpoint: str
    form: str
    files: FilesCheck
    weights: WeightsCheck
    cases: tuple[CaseJudgement, ...]
    greedy: GreedyCheck | None
    peak_intermediate_bytes: int | None  # of the largest call; None: the form does not say

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        greedy = self.greedy is None or self.greedy.passed
        cases = all(case.passed for case in self.cases)
        return self.files.passed and self.weights.passed and cases and greedy

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
        return cast(dict[str, Any], json_values({**content, "passed": self.passed}))

    def text(self) -> str:
        """The report as text: a line a check, layers only where something is wrong."""
        lines = [f"{self.package} against {self.checkpoint} ({self.form})", ""]
        lines += [_files_line(self.files), *_problems(self.files.problems)]
        lines += [
            f"{_verdict(self.weights.passed)} weights: {self.weights.tensors} tensors, "
            f"{self.weights.nbytes / 1e6:,.1f} MB, "
            + ("bit for bit the checkpoint's" if self.weights.passed else "not the checkpoint's"),
            *_problems(self.weights.problems),
        ]
        for case in self.cases:
            lines += _case_lines(case)
        if self.greedy is not None:
            lines.append(_greedy_line(self.greedy))
        if self.peak_intermediate_bytes is not None:
            lines += [
                "",
                f"largest live intermediate values of a call: "
                f"{self.peak_intermediate_bytes / 1e6:,.1f} MB",
            ]
        lines += [
            "",
            "The package is proved." if self.passed else "The package is NOT as it should be.",
        ]
        return "\n".join(lines)


def _verdict(passed: bool) -> str:
    return "ok  " if passed else "FAIL"


def _problems(problems: tuple[str, ...]) -> list[str]:
    most = 10
    more = [f"       ... and {len(problems) - most} more"] if len(problems) > most else []
    return [f"       {problem}" for problem in problems[:most]] + more


def _files_line(files: FilesCheck) -> str:
    if not files.manifest:
        return "-    files: no manifest beside the package, so no checksums"
    return f"{_verdict(files.passed)} files: {files.checked} checksums of the manifest"


def _case_lines(case: CaseJudgement) -> list[str]:
    blocks = case.tokens - case.decoded
    how = "in turns" if case.case == "chat" else f"in blocks + {case.decoded} decoded"
    flips = sum(layer.first_flips for layer in case.layers)
    worst = max((layer.hidden for layer in case.layers), key=lambda error: error.mean)
    lines = [
        f"{_verdict(case.passed)} {case.case}, {case.arithmetic}: {blocks} tokens {how}; "
        f"logits {case.limit.measure} error {case.judged:.1e} of "
        f"{case.limit.value:.1e} over {case.judged_rows} of {case.rows} rows",
        f"       logits max {case.logits.max:.1e}, mean {case.logits.mean:.1e}; top-1 "
        f"{case.top1_agreement:.1%}; KL mean {case.kl_mean:.1e}, max {case.kl_max:.1e}; worst "
        f"layer mean {worst.mean:.1e}; {flips} routing near ties fell differently",
    ]
    lines += [f"       not finite: {what}" for what in case.not_finite]
    if not case.routing_explained:
        lines.append("       routing differs by more than the scores' error explains")
    if not case.layers_within:
        lines.append("       layers differ where the logits need not show it")
    if not case.passed:
        lines += [f"       {_layer_line(layer)}" for layer in case.layers]
    return lines


def _layer_line(layer: LayerComparison) -> str:
    def small(value: float | None) -> str:
        return "-" if value is None else f"{value:.1e}"

    return (
        f"layer {layer.layer}: hidden max {layer.hidden.max:.1e}, mean {layer.hidden.mean:.1e}; "
        f"experts in common {layer.selection_agreement:.1%}; tokens first routed differently here "
        f"{layer.first_flips}, margin {small(layer.flip_margin)}, score error "
        f"{small(layer.score_error)}"
    )


def _greedy_line(greedy: GreedyCheck) -> str:
    start = f"{_verdict(greedy.passed)} greedy text after {greedy.prompt} tokens: "
    if not greedy.finite:
        return f"{start}logits that are not finite at token {len(greedy.generated)}"
    if greedy.difference is None:
        return f"{start}the same {len(greedy.generated)} tokens"
    error: TensorError = greedy.difference
    return (
        f"{start}parts at token {len(greedy.generated)} ({greedy.generated[-1]}, expected "
        f"{greedy.expected[-1]}), {greedy.gap:.1e} apart where the logits differ by "
        f"{greedy.limit.measure} {getattr(error, greedy.limit.measure):.1e} of "
        f"{greedy.limit.value:.1e}"
    )
