"""What a stage keeps while it trains: metrics, checkpoints, losses, and when each is due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import mlx.core as mx

from mobilemoe_mlx.data.packing import Batch
from mobilemoe_mlx.train import state
from mobilemoe_mlx.train.balancing import load_statistics
from mobilemoe_mlx.train.data import StageData
from mobilemoe_mlx.train.metrics import Metrics, read_metrics
from mobilemoe_mlx.train.processes import together
from mobilemoe_mlx.train.recipe import LoopConfig
from mobilemoe_mlx.train.run_folder import StageFolder
from mobilemoe_mlx.train.signals import StopSignals
from mobilemoe_mlx.train.step import StepResult, Trainer
from mobilemoe_mlx.train.summary import StageSummary, summarize

# Steps between two records of the whole expert load (a number a layer and expert) and of the
# sources' tokens and epochs.
_LOAD_EVERY = 10


class Bookkeeping:
    """The records of one stage of one run; only the first process writes any.

    A stage that has started goes on from its newest checkpoint; its data stands there already.
    """

    def __init__(
        self,
        name: str,
        config: LoopConfig,
        folder: StageFolder,
        data: StageData,
        trainer: Trainer,
        signals: StopSignals,
    ) -> None:
        self.name, self.config, self.folder = name, config, folder
        self.data, self.trainer = data, trainer
        self.losses: dict[str, float] = {}  # on the held-out batches, by name
        self.best: tuple[int, float] | None = None  # step and held-out loss, where it is looked for
        self._worse = 0  # evaluations since
        self._signals = signals
        self._is_writer = trainer.group.rank() == 0
        self._evaluated_step = self._saved_step = -1
        self._step_seconds, self._tokens_before = 0.0, 0
        resumed = folder.has_started and self._resume()
        path = folder.metrics if self._is_writer else None
        if path is not None and not resumed:
            path.unlink(missing_ok=True)
        self.metrics = Metrics(path, name, trainer.step, config.steps)
        self._saved_at = self._step_began = time.monotonic()

    def __enter__(self) -> Bookkeeping:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.metrics.close()

    def _resume(self) -> bool:
        last = state.latest(self.folder.checkpoints)
        if last is None:
            return False
        extra = state.load(last, self.trainer)
        with state.refused_if_damaged(last):
            self.losses = extra["losses"]
            self._evaluated_step = extra["evaluated_step"]
            if extra.get("best") is not None:
                self.best, self._worse = tuple(extra["best"]), extra["worse"]
        self._saved_step = self.trainer.step
        return True

    @property
    def is_over(self) -> bool:
        """True after the last step, and where the held-out loss has not fallen for long enough."""
        patience = self.config.patience
        return self.trainer.step == self.config.steps or bool(patience and self._worse >= patience)

    def be_patient_again(self) -> None:
        """Count the evaluations without a better held-out loss from here."""
        self._worse = 0

    # --- evaluations ------------------------------------------------------------------------

    @property
    def evaluation_is_due(self) -> bool:
        """Before the first step, after the last, and every `evaluate_every`."""
        step, every = self.trainer.step, self.config.evaluate_every
        due = step in (0, self.config.steps) or (every > 0 and step % every == 0)
        return bool(self.data.heldout.batches) and due and self._evaluated_step != step

    def heldout(self) -> Iterator[Batch]:
        """The batches of the evaluation that is due; raises Stopped between two after a signal."""
        at_an_end = self.trainer.step in (0, self.config.steps)
        stride = 1 if at_an_end else self.config.data.heldout_stride
        for batch in self.data.heldout.batches[::stride]:
            self._signals.agree()
            yield batch

    def record_evaluation(self, losses: dict[str, float]) -> None:
        """Keep an evaluation: "start" of the stage, "end" or "now", and in QAT others."""
        step = self.trainer.step
        self.losses |= {name: loss for name, loss in losses.items() if name != "now"}
        loss = next(losses[name] for name in ("start", "end", "now") if name in losses)
        self.metrics.write({"step": step, "heldout_loss": loss})
        self._evaluated_step = step
        if self.config.patience is not None:
            if self.best is None or loss < self.best[1]:
                self.best, self._worse = (step, loss), 0
            else:
                self._worse += 1
        self.metrics.restart_clock()

    # --- steps ------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Note the time and where the data stands."""
        self._step_began = time.monotonic()
        self._tokens_before = self.data.batches.statistics().tokens

    def record_step(self, result: StepResult) -> None:
        """Write the metrics of the step that was just taken."""
        step = self.trainer.step
        record: dict[str, Any] = {
            "step": step,
            "loss": result.loss,
            "z_loss": result.z_loss,
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            **load_statistics(result.counts),
        }
        if self.config.routing.capacity_factor is not None:
            record["dropped"] = result.dropped.tolist()
        if step % _LOAD_EVERY == 0 or step == self.config.steps:
            if result.counts.size:
                load = result.counts / mx.maximum(result.counts.sum(axis=-1, keepdims=True), 1)
                record["load"] = [[round(x, 5) for x in layer] for layer in load.tolist()]
            record["sources"] = self.data.batches.statistics().to_dict()["sources"]
        self.metrics.step(record, self.data.batches.statistics().tokens - self._tokens_before)
        self._step_seconds = time.monotonic() - self._step_began

    # --- checkpoints ------------------------------------------------------------------------

    def save_if_due(self) -> None:
        """Save every `checkpoint_every` steps and so often that no crash costs more work than
        `checkpoint_every_minutes`; raises Stopped after a signal, with everything saved."""
        step = self.trainer.step
        limit = 60 * self.config.checkpoint_every_minutes
        unsaved = time.monotonic() - self._saved_at
        # The first process's clock decides for all of them.
        is_late = self._signals.agree(0 < limit < unsaved + self._step_seconds)
        # Of the start as well, which is what a diverged run goes back to, and of the end.
        is_due = step % self.config.checkpoint_every == 0 or self.is_over
        is_best = self.best is not None and self.best[0] == step
        if is_late or is_due or is_best:
            self.save()

    def save(self) -> None:
        """Save a checkpoint of this step, unless there is one."""
        if self._saved_step == self.trainer.step:
            return
        with together(self.trainer.group):
            if self._is_writer:
                extra = {
                    "data": self.data.batches.state_dict(),
                    "data_statistics": self.data.batches.statistics().to_dict(),
                    "losses": self.losses,
                    "evaluated_step": self._evaluated_step,
                    "best": self.best,
                    "worse": self._worse,
                }
                keep, best = self.config.keep_checkpoints, self.best and self.best[0]
                state.save(self.folder.checkpoints, self.trainer, extra, keep, best)
        self._saved_step = self.trainer.step
        self._saved_at = time.monotonic()
        self.metrics.restart_clock()

    # --- the end ----------------------------------------------------------------------------

    def restore_best(self) -> None:
        """Put the weights of the best step into the trainer, where it is looked for."""
        if self.best is None:
            return
        step, self.losses["end"] = self.best
        if step != self.trainer.step:
            checkpoint = state.of_step(self.folder.checkpoints, step)
            like = self.trainer.trained_parameters()
            self.trainer.adopt(state.load_parameters(checkpoint, like))

    def finish(self) -> StageSummary:
        """Sum the stage up, as the last line of its metrics."""
        summary = summarize(
            self.name,
            self.trainer.step,
            read_metrics(self.folder.metrics) if self._is_writer else [],
            self.data.batches.statistics(),
            self.data.heldout.statistics,
            self.losses,
            self.best and self.best[0],
        )
        self.metrics.write(summary.record())
        return summary

    @property
    def last_good_checkpoint(self) -> str:
        """Where to go back to after a step that failed, as a sentence."""
        # A checkpoint of this very step holds the weights that failed.
        good = state.latest(self.folder.checkpoints, before=self.trainer.step)
        return f"The last good checkpoint: {good}." if good else "No good checkpoint is kept."
