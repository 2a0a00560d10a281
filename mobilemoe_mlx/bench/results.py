"""What was measured, as plain figures: to JSON and back."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError


@dataclass
class Measured:
    """One engine after prompts of one length; a number for each round."""

    prompt: int  # tokens
    decoded: int  # tokens after it, one by one
    first_token_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    # After the first round with such a prompt, of the process so far: its peak memory, and how much
    # of the weights in a memory map it has touched (None: not known).
    peak_bytes: int = 0
    touched_bytes: int | None = None
    # Of an engine that reads experts when they are needed, while it decoded: hits, misses,
    # bytes_read, and storage_bytes, those of them that were not in the system's page cache (None:
    # not known).
    experts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def first_token(self) -> float:
        """Seconds from the prompt to the logits after it, median."""
        return statistics.median(self.first_token_seconds)

    @property
    def prefill(self) -> float:
        """Tokens of the prompt a second, median."""
        return self.prompt / self.first_token

    @property
    def decode(self) -> float:
        """Tokens a second after the prompt, median."""
        return self.decoded / statistics.median(self.decode_seconds)


@dataclass
class EngineResults:
    """All of one engine."""

    name: str
    description: str
    start_seconds: float  # from the start of the process to the first token of a short prompt
    contexts: dict[int, Measured] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)  # prompts that would have taken too long
    repeated: Measured | None = None  # one token over and over, in a fresh process
    is_rival: bool = False
    reads_int4: bool = True  # whether a token reads `Results.token_bytes` of weights


@dataclass
class Results:
    """Everything that one call of `bench` measured."""

    model: str
    cpu: str
    threads: int
    rounds: int
    token_bytes: int  # of weights that decoding a token reads
    bandwidth: list[float]  # bytes a second, before each round
    engines: list[EngineResults]
    # Of a phone, from the app in swift_demo: heat, battery and energy.
    device: dict[str, Any] | None = None

    def bandwidth_share(self, measured: Measured) -> float:
        """How much of the memory's bandwidth decoding uses, if it reads the weights alone."""
        pairs = zip(measured.decode_seconds, self.bandwidth, strict=True)
        bytes_read = measured.decoded * self.token_bytes
        return statistics.median(bytes_read / seconds / rate for seconds, rate in pairs)

    def find(self, engine: str, prompt: int) -> Measured | None:
        """One engine's figures for one length of prompt, where both were measured."""
        found = next((e for e in self.engines if e.name == engine), None)
        return None if found is None else found.contexts.get(prompt)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)


def read_results(path: str | Path) -> Results:
    """The figures that an earlier `bench --json FILE` wrote; raises UserError for another file."""
    content = files.read_json(files.user_path(path))
    try:
        engines = [
            EngineResults(
                **{
                    **engine,
                    "contexts": {int(n): Measured(**m) for n, m in engine["contexts"].items()},
                    "repeated": engine["repeated"] and Measured(**engine["repeated"]),
                }
            )
            for engine in content["engines"]
        ]
        return Results(**{**content, "engines": engines})
    except (TypeError, KeyError, ValueError, AttributeError):
        raise UserError(f"{path} was not written by `mobilemoe bench --json`.") from None
