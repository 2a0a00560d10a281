"""The verdict on an export as text."""

from __future__ import annotations

from mobilemoe_mlx.numerics.measures import LayerComparison, TensorError, value_of
from mobilemoe_mlx.verify.greedy import GreedyCheck
from mobilemoe_mlx.verify.judgement import CaseJudgement
from mobilemoe_mlx.verify.listed_files import FilesCheck
from mobilemoe_mlx.verify.verdict import Verdict

_LEGEND = """\
float32, declared  computed in float32 throughout, or rounded to the types that the package declares
int8               the same where it declares that activations are rounded to int8
max, mean          max |package - MLX| / max |MLX|; mean |package - MLX| / root mean square of MLX
error X of Y       X: the error that is judged; Y: its limit
over N of M rows   rows of logits: M were compared, N are judged (in float32 those before the first
                   near tie that fell differently)
top-1, KL          rows with the same most likely token; KL(MLX || package) in nats a token
near ties          tokens whose expert scores are too close for two right programs to agree on"""


def as_text(verdict: Verdict) -> str:
    """A line for each check, layers only where something is wrong, and what is proved."""
    weights = verdict.weights
    lines = [f"{verdict.package} ({verdict.form})", f"against {verdict.checkpoint}", ""]
    lines += [_files_line(verdict.files), *_problems(verdict.files.problems)]
    whose = "the checkpoint's" + (", rounded to nearest INT4" if verdict.rounded else "")
    lines += [
        f"{_verdict(weights.passed)} weights: {weights.tensors} tensors, "
        f"{weights.nbytes / 1e6:,.1f} MB, {'bit for bit' if weights.passed else 'not'} {whose}",
        *_problems(weights.problems),
    ]
    for case in verdict.cases:
        lines += _case_lines(case)
    if verdict.greedy is not None:
        lines.append(_greedy_line(verdict.greedy))
    if verdict.peak_intermediate_bytes is not None:
        lines += [
            "",
            f"largest live intermediate values of a call: "
            f"{verdict.peak_intermediate_bytes / 1e6:,.1f} MB",
        ]
    return "\n".join([*lines, "", _LEGEND, "", *_conclusion(verdict)])


def _conclusion(verdict: Verdict) -> list[str]:
    """What is proved, what is wrong, and what was not looked at."""
    held, failed = _by_outcome(verdict)
    not_tried = [f"Not asked for: {', '.join(verdict.not_tried)}."] if verdict.not_tried else []
    if failed:
        return [f"The package is NOT as it should be: {', '.join(failed)}.", *not_tried]
    if not verdict.files.manifest:
        return [
            f"NOT proved as a whole: the folder of its resources, with {verdict.manifest}, is not "
            "beside it. An app needs that folder: manifest, tokenizer, settings.",
            f"What could be checked holds: {', '.join(held)}.",
            *not_tried,
        ]
    if not_tried:
        return [f"This much is proved: {', '.join(held)}.", *not_tried]
    return [f"The package is proved: {', '.join(held)}."]


def _by_outcome(verdict: Verdict) -> tuple[list[str], list[str]]:
    """The names of the checks that passed, and of those that failed."""
    checks = [("files", verdict.files.passed)] if verdict.files.manifest else []
    checks.append(("weights", verdict.weights.passed))
    cases = dict.fromkeys(case.case for case in verdict.cases)
    for name in cases:
        checks.append((name, all(c.passed for c in verdict.cases if c.case == name)))
    if verdict.greedy is not None:
        checks.append(("greedy text", verdict.greedy.passed))
    held = [name for name, passed in checks if passed]
    return held, [name for name, passed in checks if not passed]


def _verdict(passed: bool) -> str:
    return "ok  " if passed else "FAIL"


def _problems(problems: tuple[str, ...]) -> list[str]:
    most = 10
    more = [f"       ... and {len(problems) - most} more"] if len(problems) > most else []
    return [f"       {problem}" for problem in problems[:most]] + more


def _files_line(files: FilesCheck) -> str:
    if not files.manifest:
        return "-    files: not checked, as there is no manifest with their checksums"
    return f"{_verdict(files.passed)} files: {files.checked} checksums of the manifest"


def _case_lines(case: CaseJudgement) -> list[str]:
    blocks = case.tokens - case.decoded
    how = "in turns" if case.case == "chat" else f"in blocks + {case.decoded} decoded"
    flips = sum(layer.first_flips or 0 for layer in case.layers)
    worst = max(layer.hidden.mean for layer in case.layers if layer.hidden is not None)
    lines = [
        f"{_verdict(case.passed)} {case.case}, {case.arithmetic}: {blocks} tokens {how}; "
        f"logits {case.limit.measure} error {case.judged:.1e} of "
        f"{case.limit.value:.1e} over {case.judged_rows} of {case.rows} rows",
        f"       logits max {case.logits.max:.1e}, mean {case.logits.mean:.1e}; top-1 "
        f"{case.top1_agreement:.1%}; KL mean {case.kl_mean:.1e}, max {case.kl_max:.1e}; worst "
        f"layer mean {worst:.1e}; {flips} routing near ties fell differently",
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

    agreement = layer.selection_agreement
    return (
        f"layer {layer.layer}: hidden max {small(value_of(layer.hidden, 'max'))}, mean "
        f"{small(value_of(layer.hidden, 'mean'))}; experts in common "
        f"{'-' if agreement is None else f'{agreement:.1%}'}; tokens first routed differently here "
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
