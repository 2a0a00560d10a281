"""Where a package keeps its model, and how to read no more of a protobuf message than is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coremltools.proto import Model_pb2
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from mobilemoe_mlx.errors import UserError


class UnknownContent(UserError):
    """A model has something whose meaning is not known here; the message is without the path."""


def model_file(package: Path) -> Path:
    """The model of a .mlpackage, as its Manifest.json says; raises UserError when it does not."""
    manifest = package / "Manifest.json"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        relative = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
        model = package / "Data" / relative
    except OSError as error:
        raise UserError(
            f"{package}: not a Core ML package (Manifest.json: {error.strerror})."
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{manifest}: names no model ({error!r}); export it again.") from None
    if not model.resolve().is_relative_to((package / "Data").resolve()):
        raise UserError(f"{manifest}: its model lies outside the package; export it again.")
    return model


def read_spec(model: Path) -> Model_pb2.Model:
    """Parse a model file; raises UserError when it cannot be read or is no protobuf message."""
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model.read_bytes())
    except OSError as error:
        raise UserError(f"{model}: {error.strerror}; export the package again.") from None
    except DecodeError as error:
        raise UserError(f"{model}: is damaged ({error}); export the package again.") from None
    return spec


def only(message: Any, where: str, *known: str) -> None:
    """Refuse (UnknownContent) a protobuf message that has other fields set than `known`."""
    if others := [field.name for field, _ in message.ListFields() if field.name not in known]:
        raise UnknownContent(f"{where} has {', '.join(others)}")


def refuse_unknown_fields(message: Any) -> None:
    """Refuse (UnknownContent) fields that this version of coremltools has no name for."""
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        raise UnknownContent("it has fields that this version of coremltools cannot name")
