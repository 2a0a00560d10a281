"""Peak memory of loading a full-size INT4 checkpoint, and of converting, in fresh processes.

Run: python benchmarks/load_memory.py [--preset S] [--checkpoint FOLDER] [--work FOLDER]

Without --checkpoint one of the published layout is made from random weights first. Exits with
status 1 when loading and answering one prompt takes 1.35 x the file or more above an interpreter
that has imported mlx and nothing else, or when converting holds more than its largest shard twice
above one that has imported the package. torch, which transformers imports where it is installed
though nothing here uses it, is hidden.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from mobilemoe_mlx import mlx_on_linux

LOAD_LIMIT = 1.35  # x the checkpoint's file
CONVERT_LIMIT = 2.0  # x the largest shard
PROMPT_TOKENS, NEW_TOKENS = 64, 16


# Each of these runs in a process of its own: the peak of a process never falls again.
def only_mlx() -> None:
    """Import mlx."""
    import mlx.core  # noqa: F401


def idle() -> None:
    """Import what any of the others imports."""
    import mlx_lm  # noqa: F401

    import mobilemoe_mlx.checkpoint.rewrite  # noqa: F401


def load(folder: str) -> None:
    """Load the model only."""
    from mobilemoe_mlx.checkpoint.load_save import load_model

    load_model(folder)


def answer(folder: str) -> None:
    """Load the model and answer one prompt."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from mobilemoe_mlx.checkpoint.load_save import load_model

    model = load_model(folder)
    # Different tokens, as in real text: repeated ones would route to few experts.
    prompt = mx.random.randint(0, model.args.vocab_size, (PROMPT_TOKENS,))
    tokens = [token for token, _ in generate_step(prompt, model, max_tokens=NEW_TOKENS)]
    assert len(tokens) == NEW_TOKENS


def convert(source: str, output: str, to: str, shard_bytes: str) -> None:
    """Convert one folder."""
    from mobilemoe_mlx.checkpoint.rewrite import convert

    convert(source, output, to=to, max_shard_bytes=int(shard_bytes))  # type: ignore[arg-type]


def random_checkpoint(output: str, preset: str, layout: str, shard_bytes: str) -> None:
    """Make a checkpoint to measure on."""
    from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
    from mobilemoe_mlx.config import PRESETS

    write_random_checkpoint(
        output, PRESETS[preset], quantized=layout == "int4", max_shard_bytes=int(shard_bytes)
    )


STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step for step in (only_mlx, idle, load, answer, convert, random_checkpoint)
}


def peak_bytes() -> int:
    """The most memory this process has had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measured(step: str, *arguments: str | Path) -> int:
    """Run a step in a fresh interpreter; returns its peak in bytes."""
    command = [sys.executable, __file__, "--step", step, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def shards(folder: Path) -> list[int]:
    """Sizes of a folder's weight files, in bytes."""
    return [path.stat().st_size for path in folder.glob("*.safetensors")]


def report(what: str, peak: int, base: int, of: int, unit: str, limit: float) -> bool:
    """Print one line; true when it is within the limit."""
    ratio = (peak - base) / of
    verdict = "ok" if ratio < limit else "TOO MUCH"
    print(
        f"{what:<56} {(peak - base) / 1e6:8.1f} MB = {ratio:5.3f} x {unit} "
        f"({of / 1e6:.1f} MB), limit {limit}: {verdict}",
        flush=True,
    )
    return ratio < limit


def main() -> int:
    """Measure everything and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="S", help="size of the random checkpoints (default: S)")
    parser.add_argument("--checkpoint", type=Path, help="an INT4 checkpoint folder to measure")
    parser.add_argument("--work", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--step", nargs="+", metavar="STEP", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        mlx_on_linux.prepare()
        sys.modules["torch"] = None  # type: ignore[assignment]
        STEPS[options.step[0]](*options.step[1:])
        print(json.dumps({"peak": peak_bytes()}))
        return 0
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        return measure(Path(work), options.preset, options.checkpoint)


def measure(work: Path, preset: str, int4: Path | None) -> int:
    """Make what is lacking, measure, print; 0 when all is within its limit."""
    if int4 is None:
        int4 = work / "int4"
        measured("random_checkpoint", int4, preset, "int4", str(10**10))
    mlx, base = measured("only_mlx"), measured("idle")
    print(f"{'interpreter with mlx':<56} {mlx / 1e6:8.1f} MB")
    print(f"{'interpreter with this package and mlx_lm':<56} {base / 1e6:8.1f} MB", flush=True)
    size = sum(shards(int4))
    loaded, answered = measured("load", int4), measured("answer", int4)
    prompt = f"load INT4, answer {PROMPT_TOKENS} + {NEW_TOKENS} tokens"
    report("load INT4, above the package", loaded, base, size, "file", LOAD_LIMIT)
    report(f"{prompt}, above the package", answered, base, size, "file", LOAD_LIMIT)
    good = [report(f"{prompt}, above mlx", answered, mlx, size, "file", LOAD_LIMIT)]
    bf16 = work / "bf16"
    shard = max(1, size // 3)
    measured("random_checkpoint", bf16, preset, "bf16", str(shard))
    for name, source, to in (
        ("BF16, sharded, to published", bf16, "published"),
        ("INT4 to mlx", int4, "mlx"),
    ):
        output = work / "converted"
        peak = measured("convert", source, output, to, str(shard))
        good.append(
            report(
                f"convert {name}",
                peak,
                base,
                max(shards(source) + shards(output)),
                "largest shard",
                CONVERT_LIMIT,
            )
        )
        for path in output.iterdir():
            path.unlink()
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
