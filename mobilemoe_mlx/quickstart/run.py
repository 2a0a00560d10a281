"""The quickstart: corpus, tokenizer, four stages, INT4 checkpoint, Core ML package, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mobilemoe_mlx import files
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.data.stdlib_corpus import build_stdlib_corpus
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.quickstart.baseline import unigram_losses
from mobilemoe_mlx.quickstart.report import write_report
from mobilemoe_mlx.quickstart.results import Figures, Results, figures
from mobilemoe_mlx.quickstart.samples import generate_samples
from mobilemoe_mlx.quickstart.text_bytes import bytes_per_target, token_bytes
from mobilemoe_mlx.tokenizer import load_tokenizer
from mobilemoe_mlx.train.data import open_heldout
from mobilemoe_mlx.train.plot import plot_run
from mobilemoe_mlx.train.recipe import load_recipe
from mobilemoe_mlx.train.run import train
from mobilemoe_mlx.train.tiny_data import train_corpus_tokenizer
from mobilemoe_mlx.verify.verify import verify_package

T = TypeVar("T")


class Finished(NamedTuple):
    """What a quickstart leaves for its caller."""

    report: Path  # RUN/report.md
    model: Path  # the INT4 checkpoint
    figures: Figures


class _Steps:
    """Announces each step with its number and keeps how long it took."""

    def __init__(self, count: int, say: Callable[[str], None]) -> None:
        self.count, self.say = count, say
        self.seconds: dict[str, float] = {}

    def run(self, name: str, call: Callable[[], T]) -> T:
        self.say(f"[{len(self.seconds) + 1}/{self.count}] {name} ...")
        start = time.perf_counter()
        result = call()
        self.seconds[name] = time.perf_counter() - start
        return result


def quickstart(
    run: Path | str,
    *,
    recipe: str = "tiny",
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Finished:
    """Train, quantise, run, export, verify and report, everything in the folder `run`.

    `overrides`: as for `mobilemoe train`. Raises UserError when `run` exists, unless `overwrite`,
    and when the exported package does not compute what the model does.
    """
    folder = files.resolved(files.output_folder(run))
    corpus, tokenizer_folder = folder / "corpus", folder / "tokenizer"
    config = load_recipe(
        recipe, [f"tokenizer.path='{tokenizer_folder}'", f"data.folder='{corpus}'", *overrides]
    )
    config.model.check_routed_and_shared("The quickstart's Core ML package")
    _clear(folder, overwrite)
    steps = _Steps(7, say)

    # 1. The text that every machine has: the source and documentation of Python's own library.
    statistics = steps.run("Corpus", lambda: build_stdlib_corpus(corpus))

    # 2. A tokenizer of that text, with as many tokens as the recipe's model has.
    vocabulary = config.model.vocab_size
    steps.run("Tokenizer", lambda: train_corpus_tokenizer(corpus, vocabulary, tokenizer_folder))

    # 3. The recipe's stages: pre-training, mid-training, SFT, and QAT, which leaves INT4 weights.
    training = folder / "training"
    model_folder = steps.run("Training", lambda: train(config, training, say=say))

    # 4. The package for an app.
    package = folder / f"MobileMoE-{Path(recipe).stem}.mlpackage"
    options = _export_options(config.model)
    exported = steps.run("Core ML package", lambda: export_coreml(model_folder, package, options))

    # 5. The saved package, evaluated op by op, against the checkpoint.
    verified = steps.run("Proof of the package", lambda: verify_package(package, model_folder))

    # 6. What guessing by frequency alone reaches on the held-out text, which training has to beat.
    tokenizer = load_tokenizer(tokenizer_folder)
    unigram = steps.run("Unigram baselines", lambda: unigram_losses(config, tokenizer))
    sizes = token_bytes(tokenizer)
    target_bytes = {
        name: bytes_per_target(open_heldout(config, stage, tokenizer), sizes)
        for name, stage in config.stages.items()
    }

    # 7. What the checkpoints write.
    samples = steps.run("Samples", lambda: generate_samples(training))

    results = Results(
        recipe=config,
        corpus=statistics,
        training=training,
        model_folder=model_folder,
        unigram=unigram,
        target_bytes=target_bytes,
        samples=samples,
        exported=exported,
        verified=verified,
        seconds=steps.seconds,
    )
    plot_run(training, folder)
    numbers = figures(results)
    report = write_report(results, numbers, folder / "report.md")
    if not verified.proved:
        raise UserError(f"{package} does not compute what its checkpoint does; see {report}.")
    return Finished(report, model_folder, numbers)


def _export_options(args: ModelArgs) -> ExportOptions:
    # Small enough that the proof fills the whole context in seconds.
    context = min(512, args.max_position_embeddings)
    return ExportOptions(context=context, prefill_block=min(64, context))


def _clear(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{folder} exists: add --overwrite, or name another folder with --run.")
    if not (folder / "corpus").is_dir():
        raise UserError(f"{folder} is not the folder of a quickstart, so it is not overwritten.")
    shutil.rmtree(folder)
