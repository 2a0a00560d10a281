"""A training run's folder: what lies where, and whether a run may begin or go on in it.

RUN/recipe.json                       the recipe as it was run, overrides applied
RUN/tokenizer/                        the run's tokenizer
RUN/corpus/                           the standard-library corpus, where the recipe reads it
RUN/STAGE/metrics.jsonl               a line a step; evaluations; expert load; a summary
RUN/STAGE/checkpoints/step-NNNNNNNN/  to resume from
RUN/STAGE/model/                      the finished stage, in the published layout
RUN/qat/quantization.json             held-out loss of BF16, round-to-nearest and QAT

A fine-tuning run is one stage, whose folder is RUN itself; it leaves an adapter or a model:
RUN/recipe.json, RUN/metrics.jsonl, RUN/checkpoints/, RUN/adapter/ or RUN/model/
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilemoe_mlx import files
from mobilemoe_mlx.all_or_none import whole_folder
from mobilemoe_mlx.checkpoint.folder import copy_companions
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.train import state
from mobilemoe_mlx.train.metrics import read_metrics
from mobilemoe_mlx.train.recipe import FINETUNE, STAGES

if TYPE_CHECKING:
    from mobilemoe_mlx.data.packing import PackedBatches

# Of recipe.json, metrics.jsonl and the checkpoints together. Raised when a run of the version
# before could not be read rightly.
_VERSION = 1

# What may differ between a run and its resumption: nothing that changes the losses. Mixture files
# may move, since their content is compared.
_FREE_TO_CHANGE = (
    "evaluate_every",
    "heldout_stride",
    "checkpoint_every",
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "micro_batch_size",
    "eos_token_id",
    "mixture",
    "folder",
    "on_bad_record",
    "about",
)
# Names of files, where the digests of their content are compared.
_NAMES_OF_FILES = ("path", "heldout")
# What differences are called that no option of the recipe is.
_SAID = {"init_sha256": "the checkpoint of --init", "base_sha256": "the base model"}
_SAID_OF_FILES = {
    "data.heldout_sha256.": "the held-out file",
    "data.files_sha256.": "the data file",
}


@dataclass(frozen=True)
class StageFolder:
    """One stage's folder in a run."""

    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON line for each step, evaluation and summary."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the stage's checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The finished stage's checkpoint in the published layout."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The finished adapter of a fine-tuning run that trains one."""
        return self.path / "adapter"

    @property
    def result(self) -> Path:
        """The finished stage's adapter, where it has one, else its model."""
        return self.adapter if self.adapter.is_dir() else self.model

    @property
    def quantization_report(self) -> Path:
        """The three losses of QAT."""
        return self.path / "quantization.json"

    @property
    def is_finished(self) -> bool:
        """True when the stage's model or adapter has been written, which comes last."""
        results = (self.model / "config.json", self.adapter / "adapter_config.json")
        return any(path.is_file() for path in results)

    @property
    def step(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        last = state.latest(self.checkpoints)
        return 0 if last is None else state.step_of(last)

    @property
    def has_started(self) -> bool:
        """True when there is something to lose: a step has been trained and saved."""
        return self.is_finished or self.step > 0

    def unrecorded_steps(self) -> int:
        """How many of the steps up to the newest checkpoint the metrics have no record of."""
        steps = {*range(1, self.step + 1)}
        if steps and self.metrics.is_file():
            steps -= {row["step"] for row in read_metrics(self.metrics) if "loss" in row}
        return len(steps)

    def check_resumable(self, batches: PackedBatches) -> None:
        """Raise UserError where the stage cannot go on from its newest checkpoint with `batches`.

        A damaged checkpoint; data that has changed since. `batches` are where they were then.
        """
        last = state.latest(self.checkpoints)
        if last is not None and self.has_started:
            extra = state.read_extra(last)
            with state.refused_if_damaged(last):
                batches.load_state_dict(extra["data"])


@dataclass(frozen=True)
class RunFolder:
    """The folder of a training run, which need not exist yet."""

    path: Path

    @property
    def record_file(self) -> Path:
        """The recipe as it was run."""
        return self.path / "recipe.json"

    @property
    def tokenizer(self) -> Path:
        """The run's tokenizer, which later stages and resumptions use."""
        return self.path / "tokenizer"

    @property
    def corpus(self) -> Path:
        """The standard-library corpus, where the recipe reads it and no folder is named."""
        return self.path / "corpus"

    def stage(self, name: str) -> StageFolder:
        """The folder of one stage."""
        return StageFolder(self.path if name == FINETUNE else self.path / name)

    @property
    def stages(self) -> dict[str, StageFolder]:
        """The stages that have a folder, in the order they run."""
        names = [name for name in STAGES if (self.path / name).is_dir()]
        names += [FINETUNE] if self.stage(FINETUNE).metrics.is_file() else []
        return {name: self.stage(name) for name in names}

    def record(self) -> dict[str, Any]:
        """What recipe.json holds; empty where nothing has been trained yet."""
        started = any(folder.has_started for folder in self.stages.values())
        return self.read_record() if started and self.record_file.is_file() else {}

    def read_record(self) -> dict[str, Any]:
        """What recipe.json holds. Raises UserError where it is damaged or of another version."""
        advice = "start in another folder with --run"
        try:
            content = files.read_json(self.record_file)
        except UserError as error:
            raise UserError(f"{str(error).rstrip('.')}: {advice}.") from None
        if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
            raise UserError(f"{self.record_file} is not the record of a training run: {advice}.")
        if content.get("version") != _VERSION:
            raise UserError(
                f"{self.path} was made by another version of this program, whose checkpoints this "
                f"one does not read: {advice}, where --init takes a finished stage's model of this "
                "one, or go on with that version."
            )
        if not _is_record(content):
            raise UserError(f"{self.record_file} is damaged: {advice}.")
        return content

    def check_free(self, stages: Iterable[str], resume: bool) -> None:
        """Raise UserError where `stages` may not begin here: no run's folder, another command's, or
        begun already; with `resume`, where there is no run to go on with."""
        files.output_folder(self.path)
        if self.path.is_dir() and not self.record_file.exists():
            ours = {self.tokenizer, self.corpus, files.temporary_name(self.record_file)}
            if not ours.issuperset(files.visible(self.path.iterdir())):
                raise UserError(
                    f"{self.path} exists and is not a training run: choose another folder with "
                    "--run."
                )
        stages = list(stages)
        if (
            resume and not self.record_file.is_file()
        ):  # a misspelt --run must not train from scratch
            raise UserError(
                f"{self.path} holds no run to go on with: check --run, or leave out --resume to "
                "begin one there."
            )
        if self.record_file.is_file():
            is_finetuning = FINETUNE in self.read_record()["stages"]
            if is_finetuning != (FINETUNE in stages):
                command = "finetune" if is_finetuning else "train"
                raise UserError(
                    f"{self.path} holds a run of `mobilemoe {command}`: choose another folder "
                    "with --run."
                )
        for name in stages:
            if not resume and self.stage(name).has_started:
                raise UserError(
                    f"{self.stage(name).path} holds a run already: add --resume to go on, or "
                    "choose another folder with --run."
                )

    def check_same(self, now: Mapping[str, Any]) -> None:
        """Raise UserError where what has been trained here differs from the record `now`."""
        saved = self.record()
        if not saved:
            return
        for name in ("model", "tokenizer"):
            if changed := changed_values(saved.get(name, {}), now[name], f"{name}."):
                raise UserError(
                    f"{self.path} holds a run of another {name} ({', '.join(changed)}): choose "
                    "another folder with --run."
                )
        for name, stage in now["stages"].items():
            if not self.stage(name).has_started:
                continue
            if changed := changed_values(saved.get("stages", {}).get(name, {}), stage):
                raise UserError(
                    f"{self.stage(name).path} was run with another recipe ({', '.join(changed)}): "
                    "resume with the same values, or start in another folder with --run."
                )

    def begin(self, now: Mapping[str, Any], tokenizer: Path | None) -> None:
        """Create the folder, record the recipe `now` and keep the tokenizer, if one is given."""
        self.path.mkdir(parents=True, exist_ok=True)
        saved = self.record().get("stages", {})
        stages = dict(saved)
        for name, stage in now["stages"].items():
            # A finished stage's record stays; a resumption need not repeat --init.
            if not (self.stage(name).is_finished and name in saved):
                before = saved.get(name, {}) if self.stage(name).has_started else {}
                stages[name] = {**before, **stage}
        content = {"version": _VERSION, **now, "stages": stages}
        files.write_json(self.record_file, content)
        if tokenizer is not None and not (self.tokenizer / "tokenizer.json").exists():
            copy_tokenizer(tokenizer, self.tokenizer)


def _is_record(content: Mapping[str, Any]) -> bool:
    """Whether the content of a recipe.json has what this package reads of it."""
    tables = [content.get("model"), content.get("tokenizer"), *content["stages"].values()]
    return all(isinstance(table, dict) for table in tables) and all(
        isinstance(stage.get("data"), dict)
        and all(
            type(number) is int and number > 0
            for number in (
                stage.get("tokens"),
                stage.get("batch_size"),
                stage["data"].get("context"),
            )
        )
        for stage in content["stages"].values()
    )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files that belong to a tokenizer, whole or not at all."""
    with whole_folder(target) as new:
        copy_companions(source, new)


def changed_values(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs and matters to the losses, in words."""
    now = json.loads(json.dumps(now))  # tuples as the file holds them
    out: list[str] = []
    for name, value in now.items():
        if name in _FREE_TO_CHANGE or ("files_sha256" in now and name in _NAMES_OF_FILES):
            continue
        before = saved.get(name)
        if isinstance(value, dict):
            out += changed_values(
                before if isinstance(before, dict) else {}, value, f"{prefix}{name}."
            )
        elif before != value:
            out.append(_said(prefix + name, before, value, is_new=name not in saved))
    if prefix.endswith(("sources.", "files_sha256.")):
        out += [_said(prefix + name, None, None) for name in saved.keys() - now.keys()]
    return out


def _said(name: str, before: Any, now: Any, *, is_new: bool = False) -> str:
    """One difference: of values what they were and are, of digests what they are of."""
    for prefix, what in _SAID_OF_FILES.items():
        if name.startswith(prefix):
            return f"{what} {name.removeprefix(prefix)} {'is new' if is_new else 'differs'}"
    values = (before, now)
    are_short = all(v is None or isinstance(v, str | int | float) for v in values)
    if name in _SAID or is_new or not are_short or before == now:
        return f"{_SAID.get(name, name)} differs"
    old, new = ("not given" if v is None else str(v) for v in values)
    return f"{name} was {old} and is {new}"
