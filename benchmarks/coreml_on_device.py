"""Time an exported package with Core ML on this Mac, for each choice of compute units.

Run: python benchmarks/coreml_on_device.py PACKAGE [--units CPU_ONLY ...] [--prompt 1024]
[--generate 64] [--repeats 3]

Prints one line for each choice: seconds to load both functions and to make the first call of each,
tokens per second of prefill, seconds to the first token of the prompt, tokens per second of decode,
and the peak of resident memory above a Python process that has imported the same modules. Each
choice runs in a process of its own: the peak of a process never falls again. The prompt is random
tokens, because repeated ones would route to few experts. A Mac is no phone: compare choices, not
devices.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml import names
from mobilemoe_mlx.export.coreml.package_info import PackageInfo, describe_package
from mobilemoe_mlx.verify.calls import plan

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL")  # names of coremltools.ComputeUnit

# Whose state both functions use; "copied": each its own, and the caches are copied between them,
# which needs nothing that Apple does not document (docs/ios.md).
Sharing = Literal["prefill", "decode", "copied"]
SHARING: tuple[Sharing, ...] = ("prefill", "decode", "copied")

COLUMNS = {
    "load_s": "load s",
    "first_calls_s": "first calls s",
    "prefill_tokens_per_s": "prefill tok/s",
    "first_token_s": "first token s",
    "decode_tokens_per_s": "decode tok/s",
    "peak_mb": "peak MB",
}


class LoadedFunction(Protocol):
    """What is used of coremltools' models: one function of a package, loaded."""

    def predict(self, data: Any, state: Any = None) -> Any:
        """Run the function: input name -> array; returns output name -> array."""

    def make_state(self) -> Any:
        """Fresh states; the object has `read_state(name)` and `write_state(name, array)`."""


class DevicePackage:
    """Both functions of a package and its key/value cache, fed as an app feeds them."""

    def __init__(
        self, info: PackageInfo, functions: Mapping[str, LoadedFunction], sharing: Sharing
    ) -> None:
        self.block, self.context = info.prefill_block, info.context
        self._last_only = info.logits == "last"
        self._functions = functions
        self._sharing = sharing
        self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        if self._sharing == "copied":
            self._states = {name: f.make_state() for name, f in self._functions.items()}
        else:
            shared = self._functions[self._sharing].make_state()
            self._states = dict.fromkeys(self._functions, shared)
        self._latest: str | None = None  # the function that has written the cache last

    def feed(self, tokens: Sequence[int], position: int, is_decode: bool) -> np.ndarray:
        """Run `decode` for one token, or `prefill`; the first token is at `position`.

        Returns logits, float32 [rows, vocabulary]: the last token's, or every token's.
        """
        count = len(tokens)
        name = names.DECODE if is_decode else names.PREFILL
        padding = [0] * ((1 if is_decode else self.block) - count)
        data = {
            names.TOKENS: np.array([[*tokens, *padding]], np.int32),
            names.POSITION: np.array([position], np.int32),
        }
        if name == names.PREFILL and self._last_only:
            data[names.LENGTH] = np.array([count], np.int32)
        if self._sharing == "copied" and self._latest not in (None, name):
            for cache in (names.KEY_CACHE, names.VALUE_CACHE):
                rows = np.asarray(self._states[self._latest].read_state(cache), np.float32)
                self._states[name].write_state(cache, rows)
        self._latest = name
        logits = self._functions[name].predict(data, self._states[name])[names.LOGITS]
        return np.asarray(logits, np.float32)[0, :count]

    def prompt(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed a prompt from position 0 in blocks; the logits of its last call."""
        logits = np.empty((0, 0), np.float32)
        for call in plan(len(tokens), len(tokens), self.block, self.context):
            part = tokens[call.start : call.start + call.length]
            logits = self.feed(part, call.start, call.is_decode)
        return logits


def load_functions(package: Path, units: str, work: Path) -> dict[str, LoadedFunction]:
    """Compile a package into `work`, which must outlive the result, and load both functions.

    Needs macOS 15.
    """
    import coremltools as ct  # here, so that the error on other systems comes first

    compiled = ct.models.utils.compile_model(str(package), str(work / "compiled.mlmodelc"))
    return {
        name: ct.models.CompiledMLModel(compiled, getattr(ct.ComputeUnit, units), name)
        for name in (names.PREFILL, names.DECODE)
    }


def require_mac() -> None:
    """Raise UserError unless this is a Mac whose Core ML has states."""
    if sys.platform != "darwin":
        raise UserError("Core ML runs on Apple systems only: run this on a Mac with macOS 15.")
    version = platform.mac_ver()[0]
    if int(version.partition(".")[0]) < 15:
        raise UserError(f"macOS {version} has no Core ML states: run this with macOS 15 or later.")


def describe_ml_program(package: Path) -> PackageInfo:
    """The package's description; UserError for the form that Python cannot run."""
    info = describe_package(package)
    if info.form != "core-ops":
        raise UserError(
            f"{package} consists of custom layers, whose classes only an app can supply: time a "
            "package of core ops."
        )
    return info


def measure(
    package: Path,
    units: str,
    prompt: int,
    generate: int,
    repeats: int,
    load: Callable[[Path, str, Path], Mapping[str, LoadedFunction]] = load_functions,
) -> dict[str, float]:
    """Load the package and time it; the keys of COLUMNS, memory as this process's whole peak."""
    info = describe_ml_program(package)
    rng = np.random.default_rng(0)
    tokens = rng.integers(info.args.vocab_size, size=prompt + generate).tolist()
    prefills, decodes = [], []
    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        device = DevicePackage(info, load(package, units, Path(work)), "prefill")
        loaded = time.perf_counter()
        device.feed(tokens[:2], 0, False)
        device.feed(tokens[:1], 2, True)
        called = time.perf_counter()
        for _ in range(repeats):
            device.reset()
            start = time.perf_counter()
            device.prompt(tokens[:prompt])
            prefills.append(time.perf_counter() - start)
            for position in range(prompt, prompt + generate):
                start = time.perf_counter()
                device.feed([tokens[position]], position, True)
                decodes.append(time.perf_counter() - start)
    prefill, decode = statistics.median(prefills), statistics.median(decodes)
    return {
        "load_s": loaded - started,
        "first_calls_s": called - loaded,
        "prefill_tokens_per_s": prompt / prefill,
        "first_token_s": prefill,
        "decode_tokens_per_s": 1 / decode,
        "peak_mb": peak_bytes() / 1e6,
    }


def peak_bytes() -> int:
    """The most memory this process has had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_new_process(*arguments: str) -> dict[str, float]:
    """Run this file's `--step` in a fresh interpreter; its last line is the result."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"It failed ({done.returncode}); the error is above.")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(rows: Mapping[str, Mapping[str, float] | None]) -> str:
    """Markdown: one line for each choice of units; None where it failed."""
    lines = [["units", *COLUMNS.values()]]
    for units, row in rows.items():
        lines.append([units, *("failed" if row is None else f"{row[c]:,.2f}" for c in COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def run(options: argparse.Namespace) -> int:
    """Measure every choice of units; 1 when one of them failed."""
    require_mac()
    info = describe_ml_program(options.package)
    generate = min(options.generate, info.context - 2)
    prompt = max(2, min(options.prompt, info.context - generate))
    base = in_new_process("--step", "idle")["peak_mb"]
    print(
        f"{info.path.name}: context {info.context:,}, prefill block {info.prefill_block}, "
        f"{info.weight_bytes / 1e6:,.1f} MB of weights; a prompt of {prompt:,} tokens and "
        f"{generate} more; macOS {platform.mac_ver()[0]}, {platform.machine()}\n"
    )
    rows: dict[str, dict[str, float] | None] = {}
    for units in options.units:
        sizes = (str(n) for n in (prompt, generate, options.repeats))
        try:
            rows[units] = row = in_new_process("--step", str(options.package), units, *sizes)
            row["peak_mb"] -= base
        except UserError as error:
            print(f"{units}: {error}", file=sys.stderr)
            rows[units] = None
    print(table(rows))
    return 1 if None in rows.values() else 0


def main() -> int:
    """Parse, run, print mistakes plainly."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, nargs="?")
    parser.add_argument("--units", nargs="+", choices=UNITS, default=UNITS)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens (default: %(default)s)")
    parser.add_argument("--generate", type=int, default=64, help="tokens (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == ["idle"]:
        import coremltools  # noqa: F401

        print(json.dumps({"peak_mb": peak_bytes() / 1e6}))
        return 0
    if options.step:
        package, units, *sizes = options.step
        print(json.dumps(measure(Path(package), units, *map(int, sizes))))
        return 0
    if options.package is None:
        parser.error("which package?")
    if min(options.prompt, options.generate, options.repeats) < 1:
        parser.error("--prompt, --generate and --repeats must be at least 1")
    try:
        return run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
