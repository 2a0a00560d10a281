"""The paper's headline on one machine: S beside a dense model that is about as large in INT4.

Both are random models of full size in the CPU kernel, S and MobileLLM-Pro's shape; they take turns
at each context, in processes of their own. One command measures, and writes the figures, the
picture and the table of docs/performance.md:
    python benchmarks/against_dense.py
Rounds that the JSON file has already are not measured again, so that a run may be interrupted;
`--anew` begins with none, as after every change of the kernel. A quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cpu_kernel import ROOT, Engine, build

from mobilemoe_mlx import files
from mobilemoe_mlx.bench.machine import cpu

DATA = ROOT / "docs" / "data" / "against-dense.json"
PICTURE = ROOT / "docs" / "images" / "against-dense.png"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- written by benchmarks/against_dense.py -->", "<!-- end -->"

SHAPES = ("S", "pro")
CONTEXTS = (256, 1024, 2048, 4096, 8192)
# The paper's table: INT4 weights, INT8 activations, CPU, batch 1, real prompts (S25: 4 threads;
# iPhone: 2). Context -> (time to the first token in seconds, tokens/s of decoding), S and dense.
PHONES = {
    "Galaxy S25": {1024: ((2.01, 112.0), (4.26, 45.8)), 4096: ((16.36, 48.9), (35.62, 18.6))},
    "iPhone 16 Pro": {1024: ((2.14, 148.4), (6.03, 48.5)), 4096: ((13.86, 54.2), (39.08, 17.9))},
}
# Over all devices and contexts of the paper, S to dense.
PAPER_RANGES = {"prefill": (1.8, 3.8), "decode": (2.2, 3.4)}

Figures = dict[str, Any]  # as DATA has them


def rounds_of(context: int, options: argparse.Namespace, program: Path) -> Iterator[Figures]:
    """One round after the other: shape -> {"prefill", "decode" (tokens/s), ...}."""
    sizes = ["--prompts", str(context), "--contexts", str(context)]
    sizes += ["--threads", str(options.threads), "--precision", options.precision]
    engines = {
        shape: Engine(shape, [str(program), "--rounds", "0", "--shape", shape, *sizes])
        for shape in SHAPES
    }
    names = {f"prefill_{context}": "prefill", f"decode_{context}": "decode"}
    names |= {name: name for name in ("bandwidth_gb_s", "peak_rss_mb")}
    try:
        while True:
            for engine in engines.values():
                engine.round()
            yield {
                shape: {short: engine.rounds[-1][name] for name, short in names.items()}
                for shape, engine in engines.items()
            }
    finally:
        for engine in engines.values():
            engine.close()


def median(rounds: Sequence[Figures], shape: str, name: str) -> float:
    """One figure of a shape over the rounds at a context."""
    return statistics.median(found[shape][name] for found in rounds)


def ratio(rounds: Sequence[Figures], name: str) -> float:
    """The median of the rounds' ratios of S to the dense model."""
    return statistics.median(found["S"][name] / found["pro"][name] for found in rounds)


def table(data: Figures) -> str:
    """The rows of this machine and of the paper's phones, in Markdown."""
    every = [
        found[shape] for rounds in data["contexts"].values() for found in rounds for shape in SHAPES
    ]
    counts = sorted({len(rounds) for rounds in data["contexts"].values()})
    bandwidth = statistics.median(each["bandwidth_gb_s"] for each in every)
    lines = [
        f"{data['cpu']}, {data['threads']} threads, {data['precision']}, "
        f"{bandwidth:.0f} GB/s read from memory; medians of {' or '.join(map(str, counts))} rounds "
        "in turns, ratios of the same rounds:",
        "",
        "| context | prefill, tokens/s: S | dense | ratio | decode, tokens/s: S | dense | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for context, rounds in data["contexts"].items():
        cells = []
        for name in ("prefill", "decode"):
            cells += [f"{median(rounds, shape, name):.0f}" for shape in SHAPES]
            cells.append(f"**{ratio(rounds, name):.2f}**")
        lines.append(f"| {int(context):,} | {' | '.join(cells)} |")
    longest = max(map(int, data["contexts"]))
    peaks = [median(data["contexts"][str(longest)], shape, "peak_rss_mb") for shape in SHAPES]
    lines += [
        "",
        f"Peak memory at {longest:,}: S {peaks[0]:,.0f} MB, dense {peaks[1]:,.0f} MB.",
        "",
        "The paper's phones (seconds to the first token; ratios are those of the speeds):",
        "",
        "| phone, context | first token: S | dense | ratio | decode, tokens/s: S | dense | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for phone, rows in PHONES.items():
        for context, ((first, decode), (dense_first, dense_decode)) in rows.items():
            lines.append(
                f"| {phone}, {context:,} | {first} s | {dense_first} s | {dense_first / first:.2f} "
                f"| {decode} | {dense_decode} | {decode / dense_decode:.2f} |"
            )
    return "\n".join(lines)


def draw(data: Figures) -> bytes:
    """Prefill, decode and the ratios over the context, with the phones' points beside."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    contexts = [int(context) for context in data["contexts"]]
    measured = list(data["contexts"].values())
    colours = {"S": "tab:blue", "pro": "tab:orange"}
    labels = {"S": "MobileMoE-S", "pro": "MobileLLM-Pro's shape"}
    marks = dict(zip(PHONES, ("^", "s"), strict=True))
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    speed = dict(zip(("prefill", "decode"), (panels := figure.subplots(1, 3))[:2], strict=True))
    for name, panel in speed.items():
        for i, shape in enumerate(SHAPES):
            rates = [median(rounds, shape, name) for rounds in measured]
            panel.plot(contexts, rates, "o-", color=colours[shape], label=labels[shape])
            for phone, rows in PHONES.items():
                points = [
                    (c, c / row[i][0] if name == "prefill" else row[i][1])
                    for c, row in rows.items()
                ]
                label = f"{phone} (paper)" if shape == "S" else None
                panel.plot(
                    *zip(*points, strict=True),
                    marks[phone],
                    color=colours[shape],
                    alpha=0.5,
                    label=label,
                )
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.set_title(f"{name}, tokens/s", fontsize=10)
    for name, colour in (("prefill", "tab:green"), ("decode", "tab:red")):
        panel = panels[2]
        rates = [ratio(rounds, name) for rounds in measured]
        panel.plot(contexts, rates, "o-", color=colour, label=f"{name}, here")
        panel.axhspan(
            *PAPER_RANGES[name], color=colour, alpha=0.08, label=f"{name}, range of the paper"
        )
        for phone, rows in PHONES.items():
            points = [
                (c, dense[0] / s[0] if name == "prefill" else s[1] / dense[1])
                for c, (s, dense) in rows.items()
            ]
            panel.plot(*zip(*points, strict=True), marks[phone], color=colour, alpha=0.5)
    panels[2].set_title("S to dense, times as fast", fontsize=10)
    panels[2].set_ylim(bottom=0)
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.set_xticks(contexts, [f"{context:,}" for context in contexts])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("tokens of context")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(f"{data['cpu']}, {data['threads']} threads, {data['precision']}", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def write_page(text: str) -> None:
    """Replace what stands between BEGIN and END in PAGE."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    files.write(PAGE, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


def main() -> int:
    """Measure what is missing, then write the picture and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="int16")
    parser.add_argument("--anew", action="store_true", help="forget what DATA has")
    options = parser.parse_args()
    data: Figures = {
        "cpu": cpu(),
        "threads": options.threads,
        "precision": options.precision,
        "contexts": {},
    }
    if DATA.exists() and not options.anew:
        before = json.loads(DATA.read_text(encoding="utf-8"))
        same = all(before[name] == data[name] for name in data if name != "contexts")
        if not same:
            raise SystemExit(
                f"{DATA} was measured in another way or elsewhere: --anew replaces it."
            )
        data = before
    contexts = data["contexts"]
    asked = [int(context) for context in options.contexts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for context in asked:
            kept = contexts.setdefault(str(context), [])
            if len(kept) >= options.rounds:
                continue
            print(f"{context:,} tokens", file=sys.stderr)
            for found in rounds_of(context, options, program):
                kept.append(found)
                DATA.parent.mkdir(exist_ok=True)
                files.write_json(DATA, data)  # each round, so that a run may be interrupted
                if len(kept) >= options.rounds:
                    break
    data["contexts"] = {context: kept for context, kept in contexts.items() if kept}
    files.write(PICTURE, draw(data))
    write_page(table(data))
    print(table(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
