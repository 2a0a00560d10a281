"""What a fine-tuning run is of, what it reached, and what to do with what it left."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files, text_table
from mobilemoe_mlx.adapters.adapter_info import describe_adapter, next_lines
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import FINETUNE
from mobilemoe_mlx.train.run_folder import RunFolder
from mobilemoe_mlx.train.run_info import RunInfo, describe_run


@dataclass(frozen=True)
class FinetuneInfo:
    """A fine-tuning run. Losses are nats a target; None until they are known."""

    run: RunInfo
    base: str
    method: str
    rank: int | None  # of adapters
    trained: str  # the lines that the run began with
    data: str
    heldout_before: float | None
    heldout_after: float | None  # of what the run left
    best_step: int | None
    test_loss: float | None
    next: list[str]  # commands, and lines about them that begin with "#"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        own = {name: value for name, value in vars(self).items() if name != "run"}
        return {**self.run.to_dict(), **own}

    def text(self) -> str:
        """For people."""
        cells = {"base": self.base, "method": self.method, "data": self.data}
        lines = self.trained.splitlines()
        if lines:
            cells["trained"] = lines[0]
            cells |= {" " * (n + 1): line for n, line in enumerate(lines[1:])}
        if self.heldout_before is not None and self.heldout_after is not None:
            at = "" if self.best_step is None else f", of step {self.best_step:,}, which is kept"
            cells["held-out loss"] = f"{self.heldout_before:.4f} -> {self.heldout_after:.4f}{at}"
        if self.test_loss is not None:
            cells["test loss"] = f"{self.test_loss:.4f}"
        parts = [self.run.text(), "", text_table.labelled(cells), *next_lines(self.next)]
        return "\n".join(parts)


def is_finetuning(path: Path) -> bool:
    """True for the folder of a fine-tuning run, among those of training runs."""
    return FINETUNE in RunFolder(path).read_record()["stages"]


def describe_finetuning(path: Path | str) -> FinetuneInfo:
    """Read the folder of a fine-tuning run; raises UserError for another folder."""
    run = RunFolder(files.user_path(path))
    info = describe_run(run.path)
    record = run.read_record()["stages"][FINETUNE]
    stage = run.stage(FINETUNE)
    rows = read_metrics(stage.metrics) if stage.metrics.is_file() else []
    summary: dict[str, Any] = next(
        (row["summary"] for row in reversed(rows) if "summary" in row), {}
    )
    about = record.get("about", {})
    commands: list[str] = []
    if stage.is_finished:
        commands = _commands(stage.result, about.get("form"), record.get("method"))
    return FinetuneInfo(
        run=info,
        base=str(about.get("base", "")),
        method=str(record.get("method", "")),
        rank=(record.get("adapter") or {}).get("rank"),
        trained=str(about.get("trained", "")),
        data=str(record["data"].get("path", "")),
        heldout_before=summary.get("heldout_before"),
        heldout_after=summary.get("heldout_after"),
        best_step=summary.get("best_step"),
        test_loss=_last(rows, "test_loss"),
        next=commands,
    )


def _last(rows: list[dict[str, Any]], name: str) -> Any:
    return next((row[name] for row in reversed(rows) if name in row), None)


def _commands(result: Path, form: str | None, method: str | None) -> list[str]:
    """What to type to use an adapter, or a model, that a run left."""
    if result.name == "adapter":
        return describe_adapter(result).next_commands()
    use = ["generate", str(result), "--prompt", "The"] if form == "text" else ["chat", str(result)]
    mlx, package = result.with_name("mlx"), result.with_name("model.mlpackage")
    export = ["export", "coreml", str(result), str(package)]
    if method != "qat":
        export.append("--quantize")  # it is BF16, and packages hold INT4
    convert = ["convert", str(result), str(mlx), "--to", "mlx"]
    return [shlex.join(["mobilemoe", *words]) for words in (use, export, convert)]
