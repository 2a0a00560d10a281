"""One `[[sources]]` table of a mixture file: where the records are, and in which fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mobilemoe_mlx import tables
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.files import user_path
from mobilemoe_mlx.tables import Positive, Text

Format = Literal["text", "chat"]
LossOn = Literal["answers", "all"]
"""Which tokens of a conversation are learnt: those of the assistant's turns, or all."""

OnBadRecord = Literal["error", "skip"]
"""What becomes of a record that cannot be read: stop and name it, or count it and go on."""


@dataclass(frozen=True)
class SourceConfig:
    """One `[[sources]]` table of a mixture file; docs/data.md describes the keys.

    Exactly one of `path` (hub dataset id) and `files` (local paths or globs) is set. A text source
    has a text in `field`. A chat source has either messages in `field`, or one turn in
    `prompt_field` and `response_field`, or ShareGPT turns in `conversations_field`.

    `tools_field` is no key of a mixture file: with it a chat record is a `Conversation`, whose
    messages are kept whole for a chat template, tool calls and results included, and whose tools
    are in that field where a record has it.
    """

    name: Text
    weight: Positive
    format: Format
    path: Text | None = None
    subset: Text | None = None
    data_dir: Text | None = None
    split: Text = "train"
    revision: Text | None = None
    files: tuple[Text, ...] = ()
    field: Text | None = None
    prompt_field: Text | None = None
    response_field: Text | None = None
    conversations_field: Text | None = None
    tools_field: Text | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], format: Format) -> SourceConfig:
        """Check one source table; `UserError` names the source and the offending key."""
        if not isinstance(values, Mapping):
            raise UserError(f"a source must be a [[sources]] table, not {values!r}")
        name = values.get("name")
        where = f"source '{name}'" if name and isinstance(name, str) else "a source"
        try:
            config = tables.read(cls, dict(values), format=format, tools_field=None)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if bool(config.files) == ("path" in values):
            raise UserError(f"{where}: give either path (a hub dataset) or files (local files)")
        if config.files and (hub := values.keys() & {"subset", "data_dir", "split", "revision"}):
            raise UserError(f"{where}: {', '.join(sorted(hub))} belong to path, not to files")
        turn = values.keys() & {"prompt_field", "response_field"}
        if len(turn) == 1:
            raise UserError(f"{where}: prompt_field and response_field go together")
        forms = [form for form in ("field", "conversations_field") if form in values]
        if len(forms) + bool(turn) > 1:
            raise UserError(
                f"{where}: give one of field, conversations_field, or prompt_field with "
                "response_field"
            )
        if format == "text" and (turn or "conversations_field" in values):
            raise UserError(f"{where}: a text source has only field; the others are for chat")
        if forms or turn:
            return config
        return replace(config, field="text" if format == "text" else "messages")

    @property
    def dataset_folder(self) -> Path | None:
        """The folder of this machine that `path` names; None for files and for the hub."""
        folder = None if self.path is None else user_path(self.path)
        return folder if folder is not None and folder.is_dir() else None

    def is_dataset_of(self, other: SourceConfig) -> bool:
        """Whether both read the very same records of a dataset."""
        if self.path is None or other.path is None:
            return False
        mine, theirs = (
            (
                str(folder.resolve()) if (folder := source.dataset_folder) else source.path,
                source.subset,
                source.data_dir,
                source.split,
                source.revision or "main",
            )
            for source in (self, other)
        )
        return mine == theirs

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that a record must have."""
        given = (self.field, self.prompt_field, self.response_field, self.conversations_field)
        return tuple(name for name in given if name is not None)
