"""The paper's headline on one machine: S beside a dense model that is about as large in INT4.

Both are random models of full size in the CPU kernel, S and MobileLLM-Pro's shape; they take turns
at each context, in processes of their own. One command measures, and writes the figures, the
picture and the table of docs/performance.md:
    python benchmarks/against_dense.py
Contexts that the JSON file has already are not measured again, so that a run may be interrupted;
`--anew` begins with none, as after every change of the kernel. Twelve minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
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


def measure(context: int, rounds: int, threads: int, precision: str, program: Path) -> Figures:
    """Shape -> {"prefill", "decode": tokens/s of each round, "peak_rss_mb"}."""
    sizes = ["--prompts", str(context), "--contexts", str(context), "--threads", str(threads)]
    engines = {
        shape: Engine(
            shape,
            [str(program), "--rounds", "0", "--shape", shape, "--precision", precision, *sizes],
        )
        for shape in SHAPES
    }
    for number in range(rounds):
        for shape, engine in engines.items():
            print(f"{context:,} tokens, round {number + 1}, {shape}", file=sys.stderr)
            engine.round()
    found: Figures = {}
    for shape, engine in engines.items():
        engine.close()
        names = {f"prefill_{context}": "prefill", f"decode_{context}": "decode"}
        names |= {name: name for name in ("bandwidth_gb_s", "peak_rss_mb")}
        found[shape] = {
            short: [each[name] for each in engine.rounds] for name, short in names.items()
        }
    return found


def ratio(found: Figures, name: str) -> float:
    """The median of the rounds' ratios of S to the dense model."""
    ours, theirs = (found[shape][name] for shape in SHAPES)
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(data: Figures) -> str:
    """The rows of this machine and of the paper's phones, in Markdown."""
    lines = [
        f"{data['cpu']}, {data['threads']} threads, {data['precision']}, "
        f"{data['bandwidth_gb_s']:.0f} GB/s read from memory; medians of {data['rounds']} rounds "
        "in turns, ratios of the same rounds:",
        "",
        "| context | prefill, tokens/s: S | dense | ratio | decode, tokens/s: S | dense | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for context, found in data["contexts"].items():
        cells = []
        for name in ("prefill", "decode"):
            cells += [f"{statistics.median(found[shape][name]):.0f}" for shape in SHAPES]
            cells.append(f"**{ratio(found, name):.2f}**")
        lines.append(f"| {int(context):,} | {' | '.join(cells)} |")
    peaks = [
        max(max(found[shape]["peak_rss_mb"]) for found in data["contexts"].values())
        for shape in SHAPES
    ]
    lines += [
        "",
        f"Peak memory at {max(map(int, data['contexts'])):,}: S {peaks[0]:,} MB, dense "
        f"{peaks[1]:,} MB.",
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
            rates = [statistics.median(found[shape][name]) for found in measured]
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
        rates = [ratio(found, name) for found in measured]
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
        "rounds": options.rounds,
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
    with tempfile.TemporaryDirectory() as folder:
        wanted = [
            c for c in map(int, options.contexts.split(",")) if str(c) not in data["contexts"]
        ]
        program = build(Path(folder)) if wanted else None
        for context in wanted:
            assert program is not None
            data["contexts"][str(context)] = measure(
                context, options.rounds, options.threads, options.precision, program
            )
            data["contexts"] = dict(sorted(data["contexts"].items(), key=lambda item: int(item[0])))
            data["bandwidth_gb_s"] = statistics.median(
                rate
                for found in data["contexts"].values()
                for shape in SHAPES
                for rate in found[shape]["bandwidth_gb_s"]
            )
            DATA.parent.mkdir(exist_ok=True)
            files.write_json(DATA, data)
    files.write(PICTURE, draw(data))
    write_page(table(data))
    print(table(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
