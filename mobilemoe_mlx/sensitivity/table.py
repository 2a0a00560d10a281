"""What was measured, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mobilemoe_mlx import text_table
from mobilemoe_mlx.evaluation.paired import LEVEL, Interval
from mobilemoe_mlx.sensitivity.measure import Cost, Sensitivity


def as_text(found: Sensitivity) -> str:
    """Tables for a terminal; losses in thousandths of a nat where they are differences."""
    return "\n\n".join(_parts(found))


def _parts(found: Sensitivity) -> Iterator[str]:
    yield (
        f"held-out loss on {found.documents:,} documents ({found.targets:,} targets), in nats: "
        f"BF16 {found.loss_bf16:.4f}, all in INT4 {found.loss_int4:.4f}"
    )
    yield (
        f"What rounding adds to the loss, in thousandths of a nat, with {LEVEL:.0%} intervals over "
        "the documents.\nAlone: all others BF16. Last: all others INT4 already."
    )
    header = ("", "saves", "alone", "last")
    whole = ("everything", text_table.size(found.bf16_bytes - found.int4_bytes))
    rows = [header, (*whole, _thousandths(found.whole), "")]
    yield text_table.columns([*rows, *_rows(found.layers)])
    yield text_table.columns([header, *_rows(found.kinds)])
    if found.experts:
        yield "The routed experts whose rounding costs most, by the estimate from two gradients:"
        lines: list[tuple[str, ...]] = [("", "estimate", "gradient alone", "alone", "last")]
        for each in found.experts:
            estimates = (f"{1000 * value:+.2f}" for value in (each.share, each.first_order))
            place = f"layer {each.layer}, expert {each.expert}"
            lines.append((place, *estimates, _thousandths(each.alone), _thousandths(each.last)))
        yield text_table.columns(lines)
    for mix in found.suggestions:
        kept = "\n".join(f"  {name}" for name in mix.kept) or "  nothing"
        yield (
            f"Under {text_table.size(mix.budget)} ({text_table.size(mix.nbytes)} used) keep in "
            f"BF16:\n{kept}\nChosen by half of the documents. On the other half: BF16 "
            f"{mix.loss_bf16:.4f}, all in INT4 {mix.loss_int4:.4f}, this mix {mix.loss:.4f} "
            f"({mix.predicted:.4f} by\nthe costs of its tensors one by one)"
        )


def _rows(costs: Sequence[Cost]) -> Iterator[tuple[str, ...]]:
    for each in costs:
        figures = _thousandths(each.alone), _thousandths(each.last)
        yield each.name, text_table.size(each.bytes_saved), *figures


def _thousandths(interval: Interval) -> str:
    mean, low, high = (1000 * value for value in (interval.mean, interval.low, interval.high))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
