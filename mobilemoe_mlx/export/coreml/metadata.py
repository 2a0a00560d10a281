"""What a package says of itself: in Xcode to a developer, in user-defined fields to `mobilemoe`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from coremltools.proto import Model_pb2

from mobilemoe_mlx.accounting.cost import account
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.checkpoint.folder import published_config
from mobilemoe_mlx.config import INT4_QUANTIZATION, ModelArgs
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.export.coreml.options import ExportOptions

PREFIX = "mobilemoe."

_CARD_CHARACTERS = 20_000  # of the checkpoint's README.md that travel in the package


@dataclass(frozen=True)
class Credits:
    """Author and licence as Xcode shows them.

    Without an author it says that none is stated; without a licence, what LICENSE or the front
    matter of README.md says.
    """

    author: str | None = None
    license: str | None = None


def describe(
    spec: Model_pb2.Model, checkpoint: Checkpoint, options: ExportOptions, credit: Credits
) -> None:
    """Fill in `spec`'s metadata, and describe the functions' inputs, outputs and states."""
    metadata = spec.description.metadata
    metadata.shortDescription = _summary(checkpoint.args, options)
    metadata.author = credit.author or "Not stated; exported with mobilemoe-mlx"
    metadata.license = credit.license or _license(checkpoint.folder)
    metadata.versionString = f"mobilemoe-mlx {version('mobilemoe-mlx')}"
    for name, text in _user_defined(checkpoint, options).items():
        metadata.userDefined[PREFIX + name] = text
    for function in (*spec.description.functions, spec.description):
        tokens = 1 if function is not spec.description and function.name == names.DECODE else None
        texts = _feature_texts(checkpoint.args, options, tokens or options.prefill_block)
        for feature in (*function.input, *function.output, *function.state):
            feature.shortDescription = texts[feature.name]


def user_defined(fields: Mapping[str, str]) -> dict[str, str]:
    """Those of a package's user-defined `fields` that are ours, without their prefix."""
    return {n.removeprefix(PREFIX): v for n, v in fields.items() if n.startswith(PREFIX)}


def _user_defined(checkpoint: Checkpoint, options: ExportOptions) -> dict[str, str]:
    return {
        "form": options.moe,
        "context": str(options.context),
        "prefill_block": str(options.prefill_block),
        "logits": options.logits,
        "target": options.oldest_system,
        "quantization": json.dumps(INT4_QUANTIZATION),
        "config": json.dumps(published_config(checkpoint.args, checkpoint.config)),
        "model_card": _model_card(checkpoint, options),
    }


def _summary(args: ModelArgs, options: ExportOptions) -> str:
    sizes = account(args)
    use = (
        "Feed the prompt to `prefill` in blocks, then one token at a time to `decode`; both "
        "share the key/value cache, which is the model's state."
        if options.moe == "core-ops"
        else "Feed the prompt in blocks, then one token at a time; copy new_keys and new_values "
        "into your caches after each call. Needs the custom layer classes."
    )
    return (
        f"MobileMoE language model: {sizes.total_parameters / 1e6:,.1f}M parameters, "
        f"{sizes.active_parameters / 1e6:,.1f}M active per token, {args.num_hidden_layers} layers, "
        f"{args.num_local_experts} experts (top-{args.num_experts_per_tok}) and a shared one, INT4 "
        f"weights in groups of 32, context {options.context:,}. {use}"
    )


def _model_card(checkpoint: Checkpoint, options: ExportOptions) -> str:
    path = checkpoint.folder / "README.md"
    if path.is_file():
        return path.read_text(encoding="utf-8-sig", errors="replace")[:_CARD_CHARACTERS]
    computation = (
        "float16; residual stream, norms, rotations and router float32"
        if options.moe == "core-ops"
        else "by the app's layer classes, float32 between them"
    )
    return (
        f"{_summary(checkpoint.args, options)}\n\nThe checkpoint has no model card. Weights: the "
        f"checkpoint's INT4 codes and float16 scales, unchanged. Computation: {computation}."
    )


def _license(folder: Path) -> str:
    for path in sorted(p for p in folder.glob("LICENSE*") if p.is_file()):
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        title = next((t for line in lines if (t := line.strip("# \t"))), None)
        if title:
            return f"{title} (see {path.name} in the resources folder)"
    card = folder / "README.md"
    if card.is_file():
        matter = card.read_text(encoding="utf-8-sig", errors="replace").split("---", 2)
        fields = dict(re.findall(r"^(license(?:_name)?): *(\S.*)$", "".join(matter[1:2]), re.M))
        if name := fields.get("license_name") or fields.get("license"):
            return f"{name.strip()} (see README.md in the resources folder)"
    return "Not stated by the checkpoint"


def _feature_texts(args: ModelArgs, options: ExportOptions, tokens: int) -> dict[str, str]:
    """What each input, output and state is; `tokens`: of a call, the most for custom layers."""
    sizes = f"layers {args.num_hidden_layers}, key/value heads {args.num_key_value_heads}"
    cache = f"[{sizes}, positions {options.context}, features {args.head_dim}]"
    rows = f"[{sizes}, tokens, features {args.head_dim}]"
    ids = f"Token ids, 0 to {args.vocab_size - 1}"
    custom = options.moe == "custom-layer"
    if custom:
        ids += f", 1 to {tokens} of them."
    elif tokens == 1:
        ids += ": one."
    else:
        counted = "" if options.logits == "last" else " and use the logits of those that count"
        ids += f", {tokens} of them. Pad a shorter block with any id{counted}."
    every = options.logits == "all" and tokens > 1
    kind = "float32, read before the position" if custom else "float16"
    return {
        names.TOKENS: ids,
        names.POSITION: (
            "Position of the first of these tokens, counted from 0. The last position of the "
            f"block must stay below the context, {options.context}."
        ),
        names.LENGTH: "How many tokens of the block count; logits are those of the last of them.",
        names.LOGITS: (
            f"Scores of the next token, one for each of {args.vocab_size} ids, after "
            f"{'each' if every else 'the last'} of the tokens."
        ),
        names.KEY_CACHE: f"Keys of all layers, {kind} {cache}.",
        names.VALUE_CACHE: f"Values of all layers, {kind} {cache}.",
        names.NEW_KEYS: f"Keys to copy to key_cache from the position on, float32 {rows}.",
        names.NEW_VALUES: f"Values to copy to value_cache from the position on, float32 {rows}.",
    }
