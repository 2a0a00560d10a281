"""Read no more of a protobuf message than is known: what has no meaning here is refused."""

from __future__ import annotations

from typing import Any

from mobilemoe_mlx.errors import UserError


class UnknownContent(UserError):
    """A model has something whose meaning is not known here; the message is without the path."""


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
