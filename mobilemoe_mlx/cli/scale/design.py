"""`mobilemoe scale design`: the shape with the lowest predicted loss within some bounds."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from mobilemoe_mlx import text_table
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.scale.pictures_option import (
    add_pictures_argument,
    check_pictures,
    write_pictures,
)
from mobilemoe_mlx.cli.scale.plain_counts import check_plain_count
from mobilemoe_mlx.cli.sizes import byte_size, count
from mobilemoe_mlx.errors import UserError

if TYPE_CHECKING:
    from mobilemoe_mlx.scaling.design import Bounds, Design, Found

SUMMARY = "the shape with the lowest predicted loss within bounds of memory and compute"

EXAMPLES = (
    "mobilemoe scale design --memory 1e9 --device iphone16pro --tokens-per-second 30 --k 1",
)

_SHOWN = 5  # runners-up in the text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the task's arguments."""
    parser.add_argument(
        "--memory",
        type=byte_size,
        metavar="BYTES",
        help="weights and cache, like 1GB (default: 5GB, the paper's)",
    )
    parser.add_argument(
        "--flops", type=count, metavar="COUNT", help="per token at the context, at most"
    )
    parser.add_argument(
        "--tokens-per-second", type=float, metavar="RATE", help="decoding on --device, at least"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="iphone16pro, galaxys25 or a TOML file (docs/scaling.md)"
    )
    parser.add_argument(
        "--like", metavar="PRESET", help="bounds that S, M or L just meets, which is compared"
    )
    parser.add_argument(
        "--tokens",
        type=count,
        metavar="COUNT",
        help="training tokens, like 500B (the default, the most of the law's fit)",
    )
    parser.add_argument("--context", type=int, default=8192, metavar="TOKENS", help="default: 8192")
    parser.add_argument("--weights", choices=("int4", "bf16"), default="int4")
    parser.add_argument("--cache-bits", type=int, choices=(8, 16), default=8)
    parser.add_argument(
        "--runtime-memory", type=byte_size, default=0, metavar="BYTES", help="the runtime's own"
    )
    for name, what in (
        ("experts", "E / k to try (default: 1 2 4 8 16 32)"),
        ("k", "active expert equivalents to try (default: 1 2 4)"),
        ("g", "granularities to try (default: 1 2 4 8 16)"),
    ):
        parser.add_argument(f"--{name}", type=int, nargs="+", metavar="N", help=what)
    parser.add_argument(
        "--shared",
        choices=("yes", "no"),
        help="only with a shared expert, or without (default: both)",
    )
    parser.add_argument(
        "--law", metavar="FILE", help="of `scale fit --json FILE` (default: the paper's law)"
    )
    add_pictures_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the task."""
    check_json(args.json)
    check_pictures(args.pictures)
    from mobilemoe_mlx.scaling.design import DEFAULT_TOKENS, Space, design_of, find
    from mobilemoe_mlx.scaling.law import PAPER, read_law

    law = read_law(args.law) if args.law else PAPER
    tokens = DEFAULT_TOKENS if args.tokens is None else args.tokens
    asked = {"experts": args.experts, "active": args.k, "granularities": args.g}
    check_plain_count("--tokens", tokens, law.fitted_on.tokens)
    if args.shared:
        asked["shared"] = [args.shared == "yes"]
    space = Space(**{name: tuple(values) for name, values in asked.items() if values is not None})
    bounds = _bounds(args)
    found = find(bounds, tokens, law=law, space=space)
    like = design_of(args.like, bounds, tokens, law) if args.like else None
    record = found.to_dict()
    if like:
        record["like"] = {"name": args.like, **like.to_dict()}

    def draw() -> dict[str, bytes]:
        from mobilemoe_mlx.scaling.pictures import sweet_spot

        return {"sweet-spot": sweet_spot(bounds, law, tokens)}

    record["pictures"] = write_pictures(args.pictures, draw)
    write_json(args.json, record)
    if not prints_json(args.json):
        print("\n".join([_text(found, args.like, like), *record["pictures"]]))


def _bounds(args: argparse.Namespace) -> Bounds:
    from mobilemoe_mlx.scaling.design import Bounds, bounds_of
    from mobilemoe_mlx.scaling.devices import read_device

    counting: dict[str, Any] = {
        "context": args.context,
        "weights": args.weights,
        "cache_bits": args.cache_bits,
        "runtime_memory": args.runtime_memory,
    }
    bounds = Bounds(**counting)
    if args.like:
        if args.memory is not None or args.flops is not None:
            raise UserError("--like brings the bounds of a preset: leave out --memory and --flops.")
        bounds = bounds_of(args.like, bounds)
    given = {
        name: value
        for name in ("memory", "flops", "tokens_per_second")
        if (value := getattr(args, name)) is not None
    }
    device = read_device(args.device) if args.device else None
    return dataclasses.replace(bounds, device=device, **given)


def _text(found: Found, name: str | None, like: Design | None) -> str:
    rows = [["", "loss", "active", "total", "memory", "FLOPs/token", "tokens/s"]]
    shown = [("best", found.best), *(("", each) for each in found.runners_up[:_SHOWN])]
    if like:
        shown.append((name or "", like))
    for label, design in shown:
        rows.append(
            [
                f"{label:<5}{design.shape}",
                f"{design.loss:.4f}{'*' if design.extrapolated else ''}",
                text_table.count(design.active_parameters),
                text_table.count(design.total_parameters),
                text_table.size(round(design.memory)),
                text_table.count(round(design.flops)),
                "-" if design.tokens_per_second is None else f"{design.tokens_per_second:.1f}",
            ]
        )
    lines = [text_table.columns(rows), ""]
    if any(design.extrapolated for _, design in shown):
        lines.append("* beyond what the law was fitted on.")
    lines.append(
        f"Within the law's own error of the best: {found.unresolved} of the "
        f"{len(found.runners_up)} runners-up."
    )
    if like:
        lines.append(f"{name} lies {like.loss / found.best.loss - 1:.2%} above the best.")
    for bound, price in found.prices.items():
        worth = f"{price:.4f} nats per token" if price > 0 else "nothing: it does not bind"
        lines.append(f"A tenth more room in {bound.replace('_', ' ')}: {worth}.")
    args = found.best.args
    width = args.intermediate_size_mlp
    routed = f"dense, of the width {width}"
    if args.num_local_experts:
        routed = (
            f"{args.num_local_experts} routed experts of {args.intermediate_size}, "
            f"{args.num_experts_per_tok} selected, "
            + (f"a shared one of {width}" if width else "no shared one")
        )
    lines.append(
        f"Configuration: {args.num_hidden_layers} layers of {args.hidden_size}, {routed} (--json "
        "has all of it)."
    )
    return "\n".join([*lines, *(f"Note: {each}" for each in found.warnings)])
