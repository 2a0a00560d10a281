"""Where a .mlpackage keeps its model, and the model as a protobuf message."""

from __future__ import annotations

from pathlib import Path

from coremltools.proto import Model_pb2
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.files import decode, parse_json


def model_file(package: Path) -> Path:
    """The model of a .mlpackage, as its Manifest.json says; raises UserError when it does not."""
    manifest = package / "Manifest.json"
    try:
        content = parse_json(decode(manifest.read_bytes(), str(manifest)), str(manifest))
        relative = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
        model = package / "Data" / relative
    except OSError as error:
        raise UserError(
            f"{package}: not a Core ML package (Manifest.json: {error.strerror})."
        ) from None
    except (KeyError, TypeError) as error:
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
