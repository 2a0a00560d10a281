"""What an ONNX export holds and needs, read from the folder without running it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from mobilemoe_mlx import files, text_table
from mobilemoe_mlx.accounting.cost import Accounting, account
from mobilemoe_mlx.config import ModelArgs, read_config
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.manifest import read_manifest
from mobilemoe_mlx.onnx_folder.folder import FORMAT, MANIFEST, PREFIX, WEIGHTS, open_onnx_folder


@dataclass(frozen=True)
class ONNXInfo:
    """An export. Bytes are those on disk unless said otherwise."""

    path: Path
    form: str
    onnxruntime: str  # the oldest that runs it
    operators: str | None  # the library of our own, which lies in the folder
    exporter: str
    context: int
    activations: str
    accuracy_level: int
    opsets: dict[str, int]
    inputs: dict[str, str]  # name -> type and shape; of the cache layer 0's
    outputs: dict[str, str]
    nodes: dict[str, int]  # operator -> count, those in branches and loops too
    tokenizer: str | None  # its class, by which onnxruntime-genai encodes
    args: ModelArgs
    accounting: Accounting  # at the export's context
    graph_bytes: int
    weight_bytes: int
    checkpoint_bytes: int  # of the checkpoint's INT4 tensors
    key_value_cache_bytes: int  # in memory, when it is full
    added_error: dict[str, Any] | None  # of experts that were rounded a second time
    files: int  # that the manifest lists
    problems: tuple[str, ...]  # files that are missing or of another size than listed

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        record = dataclasses.asdict(self)
        del record["args"], record["accounting"]
        return {
            **record,
            "path": str(self.path),
            "config": self.args.to_dict(),
            **dataclasses.asdict(self.accounting),
        }

    def text(self) -> str:
        """For people: a line for each property, then the graph."""
        lines = [text_table.labelled(self._cells()), ""]
        for kind, values in (("input", self.inputs), ("output", self.outputs)):
            lines += [f"  {kind:<6}  {name:<23}  {what}" for name, what in values.items()]
        counts = ", ".join(f"{count:,} {name}" for name, count in self.nodes.items())
        return "\n".join([*lines, f"  {sum(self.nodes.values()):,} nodes: {counts}"])

    def _cells(self) -> dict[str, str]:
        args, a = self.args, self.accounting
        operators = f", with {self.operators}" if self.operators else ""
        ratio = self.weight_bytes / self.checkpoint_bytes
        cells = {
            "folder": f"{self.path.name}, {text_table.size(self.graph_bytes + self.weight_bytes)}",
            "form": f"{self.form}{operators}",
            "runs on": f"ONNX Runtime {self.onnxruntime} and later",
            "exported by": f"mobilemoe-mlx {self.exporter}",
            "context": f"{self.context:,} tokens",
            "activations": f"{self.activations}, accuracy level {self.accuracy_level}",
            "layers / hidden size": f"{args.num_hidden_layers} / {args.hidden_size}",
            "routed experts / per token": f"{args.num_local_experts} / {args.num_experts_per_tok}",
            "vocabulary": f"{args.vocab_size:,}",
            "active / total parameters": (
                f"{text_table.count(a.active_parameters)} / {text_table.count(a.total_parameters)}"
            ),
            "key/value cache, in memory": text_table.size(self.key_value_cache_bytes),
            "graph": text_table.size(self.graph_bytes),
            "weights": f"{text_table.size(self.weight_bytes)} ({ratio:.3f} x the checkpoint's)",
            "tokenizer": self.tokenizer or "none",
        }
        if self.added_error is not None:
            cells["added error at the logits"] = (
                f"median {self.added_error['logits_median']:.1%}, largest "
                f"{self.added_error['logits_max']:.1%}"
            )
        there = "; ".join(self.problems) or "all there (checksums: mobilemoe verify)"
        return {**cells, "manifest": f"{self.files} files: {there}"}


def describe_onnx(path: str | Path) -> ONNXInfo:
    """Describe the folder at `path`; raises UserError for one that is not ours or damaged."""
    path = files.resolved(path)
    folder = open_onnx_folder(path)
    manifest = read_manifest(path / MANIFEST, FORMAT)
    try:
        model = onnx.load(str(folder.model), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's own
        raise UserError(f"{folder.model} is damaged ({error}): export again.") from None
    metadata = {entry.key.removeprefix(PREFIX): entry.value for entry in model.metadata_props}
    settings = path / "tokenizer_config.json"
    tokenizer = files.read_json(settings) if settings.is_file() else {}
    if not isinstance(tokenizer, dict):
        raise UserError(f"{settings} is not a JSON object: export again.")
    args = ModelArgs.from_dict(read_config(path))
    content = manifest.content
    try:
        sizes = content["sizes"]
        return ONNXInfo(
            path=path,
            form=folder.form,
            onnxruntime=str(content["onnxruntime"]),
            operators=None if folder.operators is None else folder.operators.name,
            exporter=metadata.get("version", "unknown"),
            context=folder.context,
            activations=str(content["activations"]),
            accuracy_level=int(content["accuracy_level"]),
            opsets={opset.domain or "onnx": opset.version for opset in model.opset_import},
            inputs=_features(model.graph.input),
            outputs=_features(model.graph.output),
            nodes=dict(Counter(_operators(model.graph)).most_common()),
            tokenizer=tokenizer.get("tokenizer_class"),
            args=args,
            accounting=account(args, folder.context),
            graph_bytes=folder.model.stat().st_size,
            weight_bytes=(path / WEIGHTS).stat().st_size,
            checkpoint_bytes=int(sizes["checkpoint_weights"]),
            key_value_cache_bytes=int(sizes["key_value_cache"]),
            added_error=content.get("added_error"),
            files=len(manifest.files),
            problems=tuple(_problems(path, manifest.files.items())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / MANIFEST} is damaged ({error!r}): export again.") from None


def _problems(path: Path, listed: Iterable[tuple[str, Any]]) -> Iterator[str]:
    for name, file in listed:
        if not (path / name).is_file():
            yield f"{name} is missing"
        elif (path / name).stat().st_size != file.nbytes:
            yield f"{name} has another size"


def _features(values: Iterable[onnx.ValueInfoProto]) -> dict[str, str]:
    found = {}
    for value in values:
        if any(f".{layer}." in value.name for layer in range(1, 1000)):
            continue
        tensor = value.type.tensor_type
        shape = ", ".join(str(d.dim_param or d.dim_value) for d in tensor.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        found[value.name] = f"{dtype} [{shape}]"
    return found


def _operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            yield from _operators(attribute.g)
