"""Prove a saved package against the checkpoint it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from mobilemoe_mlx.chat_format import encode_text
from mobilemoe_mlx.checkpoint.check import Checkpoint, open_checkpoint
from mobilemoe_mlx.checkpoint.layouts import Layout
from mobilemoe_mlx.checkpoint.load_save import load_model, load_tensors
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.engines import Engine, default_engine, open_engine
from mobilemoe_mlx.engines.mlx import MLXEngine
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.export.int4_source import open_source
from mobilemoe_mlx.files import resolved, user_path
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.tolerance import Arithmetic
from mobilemoe_mlx.quantized import quantize_model
from mobilemoe_mlx.tokenizer import load_tokenizer
from mobilemoe_mlx.verify.calls import Call
from mobilemoe_mlx.verify.cases import CASES
from mobilemoe_mlx.verify.config_reader import check_agreement
from mobilemoe_mlx.verify.greedy import compare_greedy
from mobilemoe_mlx.verify.jobs import (
    FILES_AND_WEIGHTS,
    GREEDY,
    call_seconds,
    list_jobs,
    not_tried,
)
from mobilemoe_mlx.verify.listed_files import check_files
from mobilemoe_mlx.verify.open_export import described_args, open_export
from mobilemoe_mlx.verify.progress import Progress
from mobilemoe_mlx.verify.run_case import run_case
from mobilemoe_mlx.verify.saved_export import SavedExport
from mobilemoe_mlx.verify.verdict import Verdict

PROMPT = "Once upon a time"
_RANDOM_PROMPT = 12  # tokens, for a checkpoint without a tokenizer


def verify_package(
    package: str | Path,
    against: str | Path,
    *,
    adapters: Sequence[tuple[Path, float]] = (),
    cases: Sequence[str] = CASES,
    prompt: str | None = None,
    greedy_tokens: int = 24,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Check files, weights, logits and greedy text of a saved package against a checkpoint folder.

    The package is read from disk and evaluated in numpy, in float32 throughout and with its
    declared types; the reference is this package's model in MLX, float32 (for greedy text the CPU
    engine, exact, where it is the default). A BF16 checkpoint is rounded to nearest first, as the
    export did. `adapters`: what was fused with the checkpoint, as folders with weights. `cases`:
    any of CASES. `prompt`: the text that is continued greedily by `greedy_tokens` tokens (0: none).
    `seed`: of the cases' random tokens. `say` hears how long it will take and what is being done.
    Raises UserError for a package or checkpoint that cannot be read, and for a package of another
    model.
    """
    _check_choices(cases, greedy_tokens, seed)
    path = resolved(package)
    saved = open_export(path)
    folder = user_path(against)
    is_float = open_checkpoint(folder).layout is Layout.FLOAT
    checkpoint = open_source(folder, quantize=is_float, adapters=adapters, force=True)
    check_agreement(checkpoint.config, checkpoint.args)
    _check_same_model(saved, checkpoint)
    saved.check_interface(checkpoint.args)
    tokens: list[int] = []
    if greedy_tokens:
        tokens = _greedy_prompt(folder, checkpoint.args, prompt, seed)
        if prompt is None:
            tokens = tokens[: saved.context // 2]
        elif len(tokens) >= saved.context:
            raise UserError(
                f"The prompt has {len(tokens)} tokens, and the package's context is "
                f"{saved.context}."
            )
    jobs = list_jobs(saved, checkpoint, cases, len(tokens), greedy_tokens, seed)
    progress = Progress({job.text: job.seconds for job in jobs}, say)
    progress.begin(FILES_AND_WEIGHTS)
    files = check_files(
        path,
        saved.manifest,
        saved.root,
        saved.format,
        lambda listed: saved.manifest_facts(checkpoint, listed),
        checkpoint.folder,
    )
    weights = saved.check_weights(checkpoint)
    of_checkpoint = _reference(folder, checkpoint, adapters)
    model = saved.reference(of_checkpoint, checkpoint)
    is_own = not adapters and saved.facts["form"] != "qmoe"  # what an engine opens `folder` as
    judgements = []
    greedy = None
    for arithmetic in saved.arithmetics:
        session = saved.session(checkpoint.args, arithmetic)

        def seconds(call: Call, arithmetic: Arithmetic = arithmetic) -> float:
            return call_seconds(saved, checkpoint.args, arithmetic, call)

        for job in (job for job in jobs if job.arithmetic == arithmetic):
            progress.begin(job.text)
            if job.case == GREEDY:
                engine = _greedy_reference(folder, model) if is_own else MLXEngine(model, folder)
                greedy = compare_greedy(session, engine, tokens, greedy_tokens, arithmetic)
            else:
                judgements.append(
                    run_case(
                        job.case,
                        session,
                        model,
                        arithmetic,
                        seed,
                        lambda calls: progress.watched(calls, seconds),
                    )
                )
    return Verdict(
        package=str(path),
        checkpoint=str(folder),
        rounded=is_float,
        form=saved.form,
        files=files,
        weights=weights,
        cases=tuple(judgements),
        greedy=greedy,
        manifest=str(saved.manifest),
        not_tried=not_tried(saved, jobs),
        peak_intermediate_bytes=saved.peak_intermediate_bytes(),
    )


def _check_choices(cases: Sequence[str], greedy_tokens: int, seed: int) -> None:
    for name in cases:
        if name not in CASES:
            raise UserError(f"There is no case '{name}'{did_you_mean(name, CASES)}.")
    if seed < 0 or greedy_tokens < 0:
        raise UserError("The seed and the number of greedy tokens must be 0 or more.")


def _check_same_model(saved: SavedExport, checkpoint: Checkpoint) -> None:
    args = described_args(saved)
    for name, value in saved.facts.items():
        if saved.user_defined.get(name) != str(value):
            raise UserError(
                f"{saved.path} says of itself {name} {saved.user_defined.get(name)}, but its "
                f"program is of {value}: export it again."
            )
    if args != checkpoint.args:
        mine, theirs = args.to_dict(), checkpoint.args.to_dict()
        name = next(n for n in (*mine, *theirs) if mine.get(n) != theirs.get(n))
        raise UserError(
            f"{saved.path} was not made from {checkpoint.folder}: {name} is {mine.get(name)} in "
            f"the package and {theirs.get(name)} in the checkpoint."
        )


def _reference(
    folder: Path, checkpoint: Checkpoint, adapters: Sequence[tuple[Path, float]]
) -> Model:
    if adapters:
        return load_tensors(checkpoint, mx.float32)
    model = load_model(folder, dtype=mx.float32)
    return model if model.args == checkpoint.args else quantize_model(model)


def _greedy_reference(folder: Path, model: Model) -> Engine:
    """The fastest engine here that computes in float32."""
    if default_engine(folder) == "cpu":
        return open_engine(folder, "cpu", precision="exact")
    return MLXEngine(model, folder)


def _greedy_prompt(folder: Path, args: ModelArgs, prompt: str | None, seed: int) -> list[int]:
    if prompt is None and not (folder / "tokenizer.json").is_file():
        rng = np.random.default_rng(seed)
        return rng.integers(args.vocab_size, size=_RANDOM_PROMPT).tolist()
    begin = [] if args.bos_token_id is None else [args.bos_token_id]
    tokens = begin + encode_text(load_tokenizer(folder), PROMPT if prompt is None else prompt)
    if not tokens:
        raise UserError("The prompt is empty, and the model has no token to begin with.")
    return tokens
