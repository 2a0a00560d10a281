"""The quickstart: corpus, tokenizer, four stages, INT4 checkpoint, Core ML package, report."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.data.stdlib_corpus import build_stdlib_corpus
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.coreml.package import export_coreml
from mobilemoe_mlx.quickstart.baseline import unigram_loss
from mobilemoe_mlx.quickstart.report import Results, write_report
from mobilemoe_mlx.quickstart.samples import generate_samples
from mobilemoe_mlx.tokenizer import corpus_texts, load_tokenizer, train_tokenizer
from mobilemoe_mlx.train.plot import plot_run
from mobilemoe_mlx.train.recipe import load_recipe
from mobilemoe_mlx.train.run import train
from mobilemoe_mlx.verify.verify import verify_package


def quickstart(
    run: Path | str,
    *,
    recipe: str = "tiny",
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Train, quantise, run, export, verify, report; returns the report's path (RUN/report.md).

    `overrides`: as for `mobilemoe train`. Raises UserError when `run` exists, unless `overwrite`,
    and when the exported package does not compute what the model does.
    """
    folder = Path(run).resolve()
    _clear(folder, overwrite)
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        say(f"{name} ...")
        start = time.perf_counter()
        result = call()
        seconds[name] = time.perf_counter() - start
        return result

    corpus, tokenizer_folder = folder / "corpus", folder / "tokenizer"
    config = load_recipe(
        recipe, [f"tokenizer.path='{tokenizer_folder}'", f"data.folder='{corpus}'", *overrides]
    )
    statistics = timed("Corpus", lambda: build_stdlib_corpus(corpus))
    files = [corpus / f"{kind}.train.jsonl" for kind in ("code", "docs", "qa")]
    texts = itertools.chain.from_iterable(corpus_texts(file) for file in files)
    vocabulary = config.model.vocab_size
    timed("Tokenizer", lambda: train_tokenizer(texts, vocabulary, tokenizer_folder))
    training = folder / "training"
    model_folder = timed("Training", lambda: train(config, training))
    tokenizer = load_tokenizer(tokenizer_folder)
    package = folder / f"MobileMoE-{Path(recipe).stem}.mlpackage"
    exported = timed(
        "Core ML package",
        lambda: export_coreml(model_folder, package, _export_options(config.model)),
    )
    verified = timed("Proof of the package", lambda: verify_package(package, model_folder))
    results = Results(
        recipe=config,
        corpus=statistics,
        training=training,
        model_folder=model_folder,
        unigram=timed(
            "Unigram baselines",
            lambda: {n: unigram_loss(config, s, tokenizer) for n, s in config.stages.items()},
        ),
        samples=timed("Samples of the INT4 checkpoint", lambda: generate_samples(model_folder)),
        exported=exported,
        verified=verified,
        seconds=seconds,
    )
    plot_run(training, folder)
    report = write_report(results, folder / "report.md")
    if not verified.passed:
        raise UserError(f"{package} does not compute what its checkpoint does; see {report}.")
    return report


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
