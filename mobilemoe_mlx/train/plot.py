"""Pictures of a run: loss curves over the stages, and a heat map of the expert load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe_mlx import files
from mobilemoe_mlx.all_or_none import write_together
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.png_pictures import png_bytes
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import STAGE_TITLES
from mobilemoe_mlx.train.run_folder import RunFolder


def plot_run(run: Path | str, output: Path | str | None = None) -> list[Path]:
    """Write losses.png and expert-load.png of a run into `output` (default: the run's folder).

    Raises UserError when `run` holds no metrics.
    """
    run = files.user_path(run)
    output = files.user_path(output) if output is not None else run
    records = _read(run)
    pictures = {"losses.png": _losses(records)}
    if any("load" in row for rows in records.values() for row in rows):
        pictures["expert-load.png"] = _expert_load(records)
    return write_together(output, pictures)


def curves(run: Path | str) -> dict[str, Any]:
    """The curves as numbers: stage -> [step, nats a token] of "loss" and of "heldout_loss".

    Raises UserError when `run` holds no metrics.
    """
    return {
        stage: {
            name: [[row["step"], row[name]] for row in rows if name in row]
            for name in ("loss", "heldout_loss")
        }
        for stage, rows in _read(files.user_path(run)).items()
    }


def _read(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Stage -> the records of its metrics, for the stages that have begun."""
    records = {
        stage: read_metrics(folder.metrics)
        for stage, folder in RunFolder(run).stages.items()
        if folder.metrics.exists()
    }
    records = {stage: rows for stage, rows in records.items() if any("loss" in r for r in rows)}
    if not records:
        raise UserError(f"{run} holds no metrics of a training run (metrics.jsonl).")
    return records


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "Plots need matplotlib: `pip install --editable '.[plot]'` in a checkout of "
            "mobilemoe-mlx."
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _losses(records: dict[str, list[dict[str, Any]]]) -> bytes:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    offset, colours = 0, plt.get_cmap("viridis")(np.linspace(0.1, 0.8, len(STAGE_TITLES)))
    for stage, rows in records.items():
        colour = colours[list(STAGE_TITLES).index(stage)]
        steps = np.array([row["step"] for row in rows if "loss" in row])
        losses = np.array([row["loss"] for row in rows if "loss" in row])
        axes.plot(offset + steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(offset + steps, _smooth(losses), color=colour, label=STAGE_TITLES[stage])
        heldout = [(row["step"], row["heldout_loss"]) for row in rows if "heldout_loss" in row]
        if heldout:
            x, y = np.array(heldout).T
            axes.plot(offset + x, y, "o--", color=colour, markersize=4, linewidth=0.8)
        offset += int(steps[-1])
        axes.axvline(offset, color="grey", linewidth=0.5)
    axes.plot([], [], "o--", color="grey", markersize=4, linewidth=0.8, label="held-out")
    axes.set(xlabel="step, over the stages", ylabel="cross-entropy (nats a token)")
    axes.legend()
    return _png(plt, figure)


def _png(plt: Any, figure: Any) -> bytes:
    content = png_bytes(figure)
    plt.close(figure)
    return content


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a tenth of the curve's length, shorter at its start."""
    width = max(1, len(values) // 10)
    total = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (total[ends] - total[starts]) / (ends - starts)


def _expert_load(records: dict[str, list[dict[str, Any]]]) -> bytes:
    plt = _pyplot()
    last = {
        stage: np.array(next(row["load"] for row in reversed(rows) if "load" in row))
        for stage, rows in records.items()
        if any("load" in row for row in rows)
    }
    figure, axes = plt.subplots(
        len(last), 1, figsize=(9, 0.8 + 1.5 * len(last)), layout="constrained", squeeze=False
    )
    for axis, (stage, load) in zip(axes[:, 0], last.items(), strict=True):
        relative = load * load.shape[1]  # 1 = the even share
        image = axis.imshow(relative, aspect="auto", cmap="RdBu_r", vmin=0, vmax=2)
        axis.set(title=STAGE_TITLES[stage], ylabel="layer")
        figure.colorbar(image, ax=axis, label="load / mean")
    axes[-1, 0].set_xlabel("routed expert")
    return _png(plt, figure)
