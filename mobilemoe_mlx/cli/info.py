"""`mobilemoe info [PRESET, CHECKPOINT or PACKAGE]`: what a model costs; by itself, all presets."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.errors import UserError

if TYPE_CHECKING:
    from mobilemoe_mlx.accounting import Described
    from mobilemoe_mlx.export.coreml.package_info import FunctionInfo, ManifestInfo, PackageInfo


EXAMPLES = (
    "mobilemoe info",
    "mobilemoe info S --context 2048",
    "mobilemoe info runs/quickstart/MobileMoE-tiny.mlpackage --json runs/package.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model",
        nargs="?",
        help="tiny, S, M, L, a checkpoint folder, a Hugging Face repository id or an exported "
        ".mlpackage (default: all presets)",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help="count attention and cache at this context (default: the longest the model takes)",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    check_json(args.json)
    if args.model is not None and _is_package(args.model):
        _run_for_package(args)
        return
    # Here, since it imports MLX.
    from mobilemoe_mlx.accounting import describe, describe_presets

    if args.model is None:
        described = describe_presets(args.context)
    else:
        described = [describe(args.model, args.context)]
    records = [d.to_dict() for d in described]
    write_json(args.json, records if args.model is None else records[0])
    if not prints_json(args.json):
        print(_table(described))


def _is_package(model: str) -> bool:
    path = files.user_path(model)
    return path.suffix == ".mlpackage" or (path / "Manifest.json").is_file()


def _run_for_package(args: argparse.Namespace) -> None:
    # coremltools takes seconds to import, and the other uses do without it.
    from mobilemoe_mlx.export.coreml.package_info import describe_package

    if args.context is not None:
        raise UserError("A package's context is fixed: ask without --context.")
    info = describe_package(args.model)
    write_json(args.json, info.to_dict())
    if not prints_json(args.json):
        print(_package_text(info))


def _table(described: list[Described]) -> str:
    columns = [_cells(d) for d in described]
    labels = list(columns[0])
    width = max(map(len, labels))
    widths = [max(map(len, cells.values())) for cells in columns]
    return "\n".join(
        "  ".join(
            [f"{label:<{width}}"]
            + [f"{cells[label]:>{w}}" for cells, w in zip(columns, widths, strict=True)]
        ).rstrip()
        for label in labels
    )


def _cells(d: Described) -> dict[str, str]:
    """Label -> text, one column of the table; the labels are the same for every model."""
    args, a = d.args, d.accounting
    cells = {
        "": d.name,
        "layers": f"{args.num_hidden_layers}",
        "hidden size": f"{args.hidden_size}",
        "attention heads / key-value heads": (
            f"{args.num_attention_heads} / {args.num_key_value_heads}"
        ),
        "routed experts / per token": f"{args.num_local_experts} / {args.num_experts_per_tok}",
        "vocabulary": f"{args.vocab_size:,}",
        "active parameters per token": _short(a.active_parameters),
        "total parameters": _short(a.total_parameters),
        "BF16 weights": _bytes(a.bf16_bytes),
        "INT4 weights (published files)": _bytes(a.int4_bytes),
        "INT4 weights (as the paper counts)": _bytes(a.int4_bytes_paper),
        "KV cache per token, 16-bit": _bytes(a.kv_bytes_per_token["bfloat16"]),
        "KV cache per token, float32": _bytes(a.kv_bytes_per_token["float32"]),
        "context": f"{a.context:,}",
        "KV cache at this context, 16-bit": _bytes(a.kv_bytes_per_token["bfloat16"] * a.context),
        "FLOPs per token at this context": _short(a.flops_per_token),
    }
    if d.files:
        plural = "" if d.files.count == 1 else "s"
        cells["weights here"] = (
            f"{d.files.layout}, {d.files.count} file{plural}, {_bytes(d.files.bytes)}"
        )
    return cells


def _short(count: int) -> str:
    """A count in the paper's manner: 272.5M, 1.26B."""
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def _bytes(count: int) -> str:
    """Bytes in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}" if unit == "GB" else f"{count / size:.1f} {unit}"
    return f"{count} B"


def _package_text(info: PackageInfo) -> str:
    cells = _package_cells(info)
    width = max(map(len, cells))
    lines = [f"{label:<{width}}  {text}".rstrip() for label, text in cells.items()]
    for function in info.functions:
        lines += ["", *_function_lines(function, info.default_function)]
    return "\n".join(lines)


def _package_cells(info: PackageInfo) -> dict[str, str]:
    args, a = info.args, info.accounting
    return {
        "package": f"{info.path.name}, {_bytes(info.package_bytes)}",
        "form": info.form,
        "target": f"{info.target} (specification version {info.specification_version})",
        "exported by": info.exporter,
        "context / prefill block": f"{info.context:,} / {info.prefill_block:,} tokens",
        "logits of a prefill block": info.logits,
        "layers / hidden size": f"{args.num_hidden_layers} / {args.hidden_size}",
        "routed experts / per token": f"{args.num_local_experts} / {args.num_experts_per_tok}",
        "vocabulary": f"{args.vocab_size:,}",
        "active / total parameters": (
            f"{_short(a.active_parameters)} / {_short(a.total_parameters)}"
        ),
        "quantization": f"{info.quantization['format']}",
        "key/value cache, in memory": _bytes(info.key_value_cache_bytes),
        "program": _bytes(info.program_bytes),
        "weights": _bytes(info.weight_bytes),
        **{f"  {kind.kind}": f"{_bytes(kind.bytes)} in {kind.count:,}" for kind in info.weights},
        "manifest": _manifest_text(info.manifest),
    }


def _manifest_text(manifest: ManifestInfo | None) -> str:
    if manifest is None:
        return "none beside the package"
    problems = [f"{name} is missing" for name in manifest.missing]
    problems += [f"{name} has another size" for name in manifest.resized]
    where = f"{manifest.path.parent.name}/{manifest.path.name}, {manifest.files} files"
    return f"{where}: {'; '.join(problems) or 'all there (checksums: mobilemoe verify)'}"


def _function_lines(function: FunctionInfo, default: str) -> Iterator[str]:
    yield function.name + (" (default)" if function.name == default else "")
    for kind, features in (
        ("input", function.inputs),
        ("state", function.states),
        ("output", function.outputs),
    ):
        for name, feature in features.items():
            yield f"  {kind:<6}  {name:<11}  {feature}"
    yield f"  {sum(function.operations.values()):,} operations: {_counts(function.operations)}"
    if function.computed:
        yield f"  their results: {_counts(function.computed)}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
