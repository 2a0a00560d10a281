"""The description of an exported package as text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mobilemoe_mlx import text_table
from mobilemoe_mlx.export.coreml.package_info import FunctionInfo, ManifestInfo, PackageInfo


def text(info: PackageInfo) -> str:
    """For people: a line for each property, then each function with its features."""
    lines = [text_table.labelled(_cells(info))]
    for function in info.functions:
        lines += ["", *_function_lines(function, info.default_function)]
    return "\n".join(lines)


def _cells(info: PackageInfo) -> dict[str, str]:
    args, a = info.args, info.accounting
    return {
        "package": f"{info.path.name}, {text_table.size(info.package_bytes)}",
        "form": info.form,
        "target": f"{info.target} (specification version {info.specification_version})",
        "exported by": info.exporter,
        "context / prefill block": f"{info.context:,} / {info.prefill_block:,} tokens",
        "logits of a prefill block": info.logits,
        "layers / hidden size": f"{args.num_hidden_layers} / {args.hidden_size}",
        "routed experts / per token": f"{args.num_local_experts} / {args.num_experts_per_tok}",
        "vocabulary": f"{args.vocab_size:,}",
        "active / total parameters": (
            f"{text_table.count(a.active_parameters)} / {text_table.count(a.total_parameters)}"
        ),
        "quantization": f"{info.quantization['format']}",
        "key/value cache, in memory": text_table.size(info.key_value_cache_bytes),
        "program": text_table.size(info.program_bytes),
        "weights": text_table.size(info.weight_bytes),
        **{
            f"  {kind.kind}": f"{text_table.size(kind.bytes)} in {kind.count:,}"
            for kind in info.weights
        },
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
