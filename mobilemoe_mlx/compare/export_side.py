"""A saved export as one side of a comparison: an ONNX folder in ONNX Runtime, or a Core ML package
in the evaluator that proves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mobilemoe_mlx.compare.cpu_side import ARITHMETIC
from mobilemoe_mlx.compare.side import Run, Side
from mobilemoe_mlx.engines.engine import Adapters
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.numerics.tolerance import limit
from mobilemoe_mlx.numerics.values import PartialLayer, PartialTrace
from mobilemoe_mlx.onnx_folder.extra import need
from mobilemoe_mlx.verify.calls import Call, plan
from mobilemoe_mlx.verify.open_export import described_args, open_export
from mobilemoe_mlx.verify.session import Session, run


def onnx_side(folder: Path, precision: str | None, adapters: Adapters) -> Side:
    """An ONNX folder. `precision`: of a fused one, instead of its own ("exact", "int16", "int8").

    Raises UserError for all that is wrong with it, and where the extra is absent.
    """
    need("onnx", "onnxruntime")
    from mobilemoe_mlx.verify.onnx.onnx_export import ONNXExport

    _refuse(adapters, folder, "onnx")
    export = ONNXExport(folder)
    if precision is not None:
        export.check_precision(precision)
    arithmetic = export.arithmetics[-1] if precision is None else ARITHMETIC[precision]
    args = described_args(export)
    export.check_interface(args)
    return Side(
        folder=folder,
        engine="onnx",
        precision=precision or export.precision,
        label=f"ONNX Runtime {export.form} {precision or export.precision}",
        args=args,
        context=export.context,
        limit=limit(arithmetic, args.num_hidden_layers),
        tokenizer=folder,
        packages=("onnxruntime",),
        load=lambda: ExportRun(export.session_of_all_logits(args, precision), has_all_logits=True),
    )


def coreml_side(package: Path, precision: str | None, adapters: Adapters) -> Side:
    """A Core ML package. `precision`: "declared" (its own types, the default) or "float32".

    Raises UserError for all that is wrong with it, and for custom layers otherwise than in
    float32, in which their contract's reference computes.
    """
    _refuse(adapters, package, "coreml")
    export = open_export(package)
    arithmetic = next((a for a in export.arithmetics if a == precision), None)
    if precision is None:
        arithmetic = export.arithmetics[-1]
    if arithmetic is None:
        raise UserError(
            f"{package} is of the form {export.form}, which is evaluated in "
            f"{' or '.join(export.arithmetics)} alone, not as '{precision}'."
        )
    args = described_args(export)
    export.check_interface(args)
    load: Callable[[], Run] = lambda: ExportRun(  # noqa: E731
        export.session(args, arithmetic), has_all_logits=export.facts["logits"] == "all"
    )
    return Side(
        folder=package,
        engine="coreml",
        precision=arithmetic,
        label=f"Core ML {export.form} {arithmetic}",
        args=args,
        context=export.context,
        limit=limit(arithmetic, args.num_hidden_layers),
        tokenizer=export.manifest.parent,
        packages=("coremltools", "numpy"),
        load=load,
        seconds_per_token=export.seconds(args, arithmetic, Call(0, 1, is_decode=True)),
    )


class ExportRun(Run):
    """A session of a saved export."""

    def __init__(self, session: Session, *, has_all_logits: bool) -> None:
        """`has_all_logits`: whether a call gives every token's logits, or the last one's."""
        self._session, self._has_all_logits = session, has_all_logits
        self._position = 0

    def start(self, tokens: list[int]) -> PartialTrace:
        """Compute a sequence; without all logits token by token, for they are what is compared."""
        session, total = self._session, len(tokens)
        calls: Iterable[Call] = (Call(i, 1, is_decode=True) for i in range(total))
        if self._has_all_logits:
            calls = plan(total, total, session.block, session.context)
        trace, _ = run(session, tokens, calls)
        self._position = total
        if session.shows_routing:
            return trace
        return PartialTrace(
            [PartialLayer(x.hidden, None, None) for x in trace.layers], trace.logits
        )

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens, one at a time."""
        rows = []
        for token in tokens:
            rows.append(self._session.feed([token], self._position, True).logits)
            self._position += 1
        return np.concatenate(rows)


def _refuse(adapters: Adapters, path: Path, kind: str) -> None:
    if adapters:
        raise UserError(
            f"{path} is an export, which takes no adapters: export the checkpoint with them, by "
            f"mobilemoe export {kind} ... --adapter."
        )
