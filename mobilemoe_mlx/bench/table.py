"""The figures of `bench` as text."""

from __future__ import annotations

import statistics

from mobilemoe_mlx import text_table
from mobilemoe_mlx.bench.results import EngineResults, Measured, Results

_HEAD = (
    "engine",
    "prompt",
    "first token, s",
    "prefill, tokens/s",
    "decode, tokens/s",
    "of bandwidth",
    "peak memory",
    "weights touched",
)
_EXPERTS_HEAD = ("experts found", "read a token", "from storage")


def as_text(results: Results, before: Results | None = None) -> str:
    """A table, what stands around it, and ratios to `before`, an earlier run's figures."""
    reads = any(m.experts for engine in results.engines for m in engine.contexts.values())
    rows = [[*_HEAD, *(_EXPERTS_HEAD if reads else ())]]
    for engine in results.engines:
        for prompt, measured in engine.contexts.items():
            old = None if before is None else before.find(engine.name, prompt)
            experts = _experts(measured) if reads else ()
            rows.append([*_row(results, engine, measured, old), *experts])
        empty = ["-"] * (len(rows[0]) - 2)
        rows += [[_name(engine), f"{n:,}", *empty] for n in engine.left_out]
    rate = statistics.median(results.bandwidth) / 1e9
    rounds = "one round" if results.rounds == 1 else f"medians of {results.rounds} rounds in turns"
    lines = [
        f"{results.cpu}, {results.threads} threads, {rate:.1f} GB/s read from memory; {rounds}.",
        f"Decoding a token reads {text_table.size(results.token_bytes)} of weights. Of bandwidth: "
        "how much of what memory gives that takes (more than all where caches hold the weights).",
        "",
        text_table.columns(rows),
        "",
        *map(_start, results.engines),
        *(_repeated(e) for e in results.engines if _tells(e)),
    ]
    if any(engine.left_out for engine in results.engines):
        lines.append("A row of -: would have taken longer than --most-seconds.")
    if reads:
        lines.append(
            "Experts are read when they are needed. Found: how many were in memory. From storage: "
            "how much of what was read the system did not have in its page cache."
        )
    if before is not None:
        device = before.device or {}
        heat = ", ".join(device.get("thermal_states", []))
        lines.append(
            f"x: times the earlier figure, measured on {before.cpu}"
            + (f" (heat, from start to end: {heat})" if heat else "")
            + "."
        )
    return "\n".join(lines)


def _row(
    results: Results, engine: EngineResults, measured: Measured, old: Measured | None
) -> list[str]:
    def rate(name: str) -> str:
        value = float(getattr(measured, name))
        text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        return text if old is None else f"{text} x{value / getattr(old, name):.2f}"

    touched = measured.touched_bytes
    return [
        _name(engine),
        f"{measured.prompt:,}",
        f"{measured.first_token:.3g}",
        rate("prefill"),
        rate("decode"),
        f"{100 * results.bandwidth_share(measured):.0f} %" if engine.reads_int4 else "-",
        text_table.size(measured.peak_bytes),
        text_table.size(touched) if touched else "-",
    ]


def _name(engine: EngineResults) -> str:
    return f"{engine.name} (rival)" if engine.is_rival else engine.name


def _experts(measured: Measured) -> list[str]:
    """While a token was decoded: experts found, bytes read, and those from storage."""
    used = sum(read["hits"] + read["misses"] for read in measured.experts)
    if not used:
        return ["-"] * len(_EXPERTS_HEAD)
    tokens = measured.decoded * len(measured.experts)
    stored = [read["storage_bytes"] for read in measured.experts]
    return [
        f"{100 * sum(read['hits'] for read in measured.experts) / used:.0f} %",
        text_table.size(sum(read["bytes_read"] for read in measured.experts) // tokens),
        "-" if None in stored else text_table.size(sum(stored) // tokens),
    ]


def _start(engine: EngineResults) -> str:
    return (
        f"{engine.name}: {engine.description}. From the start of its process to the first token of "
        f"a short prompt: {engine.start_seconds:.2f} s."
    )


def _tells(engine: EngineResults) -> bool:
    """Whether the repeated token shows what it is there for: experts that it leaves alone."""
    repeated = engine.repeated
    if repeated is None:
        return False
    touched = engine.contexts[repeated.prompt].touched_bytes
    return not (repeated.touched_bytes and touched) or repeated.touched_bytes < 0.99 * touched


def _repeated(engine: EngineResults) -> str:
    repeated = engine.repeated
    assert repeated is not None
    real = engine.contexts[repeated.prompt]
    memory = ""
    if repeated.touched_bytes and real.touched_bytes:
        memory = (
            f", and touches {text_table.size(repeated.touched_bytes)} of the weights in place "
            f"of {text_table.size(real.touched_bytes)}"
        )
    return (
        f"{engine.name}: one token repeated {repeated.prompt:,} times decodes at "
        f"{repeated.decode / real.decode:.2f} x the speed of real text{memory}."
    )
