"""A comparison as text."""

from __future__ import annotations

from mobilemoe_mlx import text_table
from mobilemoe_mlx.evaluation.comparison import ComparedModel, Comparison, Difference
from mobilemoe_mlx.evaluation.paired import LEVEL


def as_text(found: Comparison) -> str:
    """What was asked, a table for each model, and how to read it."""
    asked = "\n".join(f"{name}: {what}" for name, what in found.described.items())
    parts = [_model(found.base, model) for model in found.models]
    notes = (
        f"Intervals ({LEVEL:.0%}) by the paired bootstrap over questions. Gained, lost: questions "
        "that one\nof the two alone has right, with McNemar's test (mid-p); Holm: corrected for "
        "all such lines\nof the table."
    )
    if found.left_out:
        notes += f"\nNot means over questions, so not compared: {', '.join(found.left_out)}."
    return "\n\n".join([asked, *parts, notes])


def _model(base: str, model: ComparedModel) -> str:
    rows: list[tuple[str, ...]] = [
        ("", "metric", "questions", base, model.name, "difference", "gained", "lost", "p", "Holm")
    ]
    rows += [_row(each) for each in model.differences]
    for each in model.averages:
        tasks = f"mean of {each.tasks} tasks"
        interval = _signed(each.difference.mean, each.difference.low, each.difference.high)
        rows.append((tasks, each.metric, "", "", "", interval, "", "", "", ""))
    return f"{model.name} against {base}\n\n{text_table.columns(rows)}"


def _row(each: Difference) -> tuple[str, ...]:
    test = ("", "", "", "")
    if each.test is not None and each.p_holm is not None:
        test = (f"{each.test.gained}", f"{each.test.lost}", _p(each.test.p), _p(each.p_holm))
    interval = _signed(each.difference.mean, each.difference.low, each.difference.high)
    means = f"{each.base:.4f}", f"{each.other:.4f}"
    arrow = "" if each.higher_is_better else " (less is better)"
    return (each.task, each.metric + arrow, f"{each.questions:,}", *means, interval, *test)


def _signed(mean: float, low: float, high: float) -> str:
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"
