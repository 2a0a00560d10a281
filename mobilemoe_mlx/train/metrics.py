"""What people watch: a progress bar, and metrics as JSON lines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.finite_number import is_finite_number
from mobilemoe_mlx.memory import peak_memory_bytes

_NUMBERS = ("loss", "heldout_loss", "tokens", "tokens_per_second")


class Metrics:
    """Writes one JSON line for each record to `path` and moves a progress bar.

    On resume, records after `step` are dropped: they will be computed again. `path` None (the
    processes that only help) shows and writes nothing.
    """

    def __init__(self, path: Path | None, stage: str, step: int, steps: int) -> None:
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _keep_until(path, step)
            self._file = path.open("a", encoding="utf-8")
        self._bar = tqdm(
            total=steps,
            initial=step,
            desc=stage,
            unit="step",
            file=sys.stderr,
            mininterval=0.5,
            disable=path is None,
        )
        self._time = time.perf_counter()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and leave the bar as it stands."""
        self._bar.close()
        if self._file is not None:
            self._file.close()

    def step(self, record: dict[str, Any], tokens: int) -> None:
        """Log one optimiser step of `tokens` tokens; adds them, their rate and peak memory."""
        rate = tokens / (time.perf_counter() - self._time)
        memory = peak_memory_bytes()  # bytes
        clocked = {
            "tokens": tokens,
            "tokens_per_second": round(rate, 1),
            "peak_memory": memory,
        }
        self.write({**record, **clocked})
        self._bar.set_postfix_str(
            f"loss {record['loss']:.3f}, {rate:,.0f} tok/s, {memory / 1e9:.2f} GB", refresh=False
        )
        self._bar.update()
        self._time = time.perf_counter()

    def restart_clock(self) -> None:
        """Leave what was done since the last step (evaluation, saving) out of tokens/s."""
        self._time = time.perf_counter()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record as it is."""
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line cut off by a crash is left out.

    Raises UserError naming the file, and the line if one is no record.
    """
    records = []
    lines = files.read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if _is_record(record):
            records.append(record)
        elif number < len(lines) and line:  # the last line ends the file, or was cut off
            raise UserError(f"{path}: line {number} is no record of a training run: remove it.")
    return records


def _is_record(record: Any) -> bool:
    """Whether a line of metrics is of the form that `Metrics` writes."""
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return False
    return (
        all(is_finite_number(record.get(name, 0)) for name in _NUMBERS)
        and all(
            isinstance(record.get(name, []), list) for name in ("dead_experts", "dropped", "load")
        )
        and isinstance(record.get("sources", {}), dict)
    )


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [r for r in read_metrics(path) if r["step"] <= step and "summary" not in r]
    files.write(path, "".join(json.dumps(r) + "\n" for r in kept).encode())
