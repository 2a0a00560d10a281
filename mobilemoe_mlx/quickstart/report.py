"""The quickstart's report: Markdown with pictures."""

from __future__ import annotations

import platform
from pathlib import Path

import mlx.core as mx

from mobilemoe_mlx import files
from mobilemoe_mlx.quickstart.results import Figures, Results
from mobilemoe_mlx.quickstart.samples import (
    CODE,
    DOCUMENTATION,
    QUESTION,
    SAMPLING,
    STAGES,
    Sample,
)
from mobilemoe_mlx.train.recipe import STAGE_TITLES
from mobilemoe_mlx.verify.verdict_text import as_text


def write_report(results: Results, numbers: Figures, path: Path) -> Path:
    """Write the report of `results` to `path`; `numbers`: their figures."""
    first = [next(s for s in results.samples if s.kind == kind) for kind in _SAMPLE_TITLES]
    parts = [
        "# MobileMoE quickstart report",
        _summary(results),
        _headline(numbers),
        _sampling(),
        *map(_sample, first),
        "## Loss",
        _losses(results, numbers),
        "## INT4",
        _int4(numbers),
        "## Expert load",
        _load(numbers),
        "## Speed",
        _speed(numbers),
        "## Model",
        _model(results, numbers),
        "## Data",
        _data(results),
        "## Core ML package",
        _package(results),
        "## More samples",
        *(_sample(sample) for sample in results.samples if sample not in first),
    ]
    files.write(path, ("\n\n".join(parts) + "\n").encode())
    return path


def _summary(results: Results) -> str:
    device = mx.default_device().type
    where = "GPU" if device == mx.DeviceType.gpu else "CPU"
    return (
        f"A mixture of experts trained from nothing through all four stages on {platform.system()} "
        f"({platform.machine()}, MLX on the {where}), on the source and documentation of Python "
        f"{results.corpus['python']}'s standard library. The INT4 checkpoint is in "
        f"`{results.model_folder.relative_to(results.training.parent)}`."
    )


def _headline(numbers: Figures) -> str:
    """The four numbers that a reader wants."""
    losses = [
        f"{STAGE_TITLES[name]} **{stage.loss_after:.3f}** ({stage.bits_per_byte:.2f})"
        for name, stage in numbers.stages.items()
    ]
    after, nearest = (
        loss - numbers.loss_bf16 for loss in (numbers.loss_qat_int4, numbers.loss_nearest_int4)
    )
    training = sum(stage.tokens for stage in numbers.stages.values()) / sum(
        stage.tokens / stage.tokens_per_second for stage in numbers.stages.values()
    )
    speed = [f"**{training:,.0f} tokens/s** in training"]
    if numbers.decode_tokens_per_second is not None:
        speed.append(
            f"{numbers.decode_tokens_per_second:,.0f} tokens/s in INT4 answers (engine "
            f"{numbers.decode_engine})"
        )
    speed.append(f"{_duration(sum(numbers.seconds.values()))} in all")
    rows = [
        [
            "held-out loss, nats a token (bits a byte), of each stage on text of its own kind",
            ", ".join(losses),
        ],
        [
            "cost of INT4, nats a token",
            f"**{after:+.3f}** after QAT; {nearest:+.3f} when only rounded",
        ],
        [
            "size",
            f"**{numbers.checkpoint_bytes / 1e6:.1f} MB** in INT4, as a Core ML package "
            f"{numbers.package_bytes / 1e6:.1f} MB; {numbers.total_parameters / 1e6:.1f} M "
            f"parameters, {numbers.active_parameters / 1e6:.1f} M of them active for a token",
        ],
        ["speed", ", ".join(speed)],
    ]
    return _table(["", ""], rows)


def _sampling() -> str:
    code, documentation, answers = (STAGE_TITLES[stage] for stage in STAGES.values())
    return (
        f"What the model writes after the stage that trained it on that kind of text: code after "
        f"{code}, documentation after {documentation}, answers after {answers}. Drawn at "
        f"temperature {SAMPLING.temperature} from the tokens at least {SAMPLING.min_p} times as "
        f"probable as the likeliest, at most {SAMPLING.max_tokens} tokens, seed {SAMPLING.seed}, "
        "all of them the first draw. A model this small learns form, not facts."
    )


def _losses(results: Results, numbers: Figures) -> str:
    rows = [
        [
            STAGE_TITLES[name],
            f"{stage.tokens:,}",
            str(results.recipe.stages[name].data.context),
            f"{results.recipe.stages[name].optimizer.peak_lr:g}, "
            f"{results.recipe.stages[name].optimizer.schedule}",
            f"{stage.unigram_loss:.3f}",
            f"{stage.loss_before:.3f}",
            f"**{stage.loss_after:.3f}**",
            f"{stage.bits_per_byte:.3f}",
        ]
        for name, stage in numbers.stages.items()
    ]
    head = ["stage", "tokens", "context", "peak rate", "unigram", "before", "after"]
    head.append("bits a byte")
    return (
        "Held-out cross-entropy, nats a token (SFT and QAT: of the answers only), against "
        "guessing by frequency alone. Bits a byte of text do not depend on the vocabulary.\n\n"
        f"{_table(head, rows)}\n\n![losses](losses.png)"
    )


def _int4(numbers: Figures) -> str:
    rows = [
        ["BF16, before QAT", f"{numbers.loss_bf16:.4f}"],
        ["INT4, rounded to nearest", f"{numbers.loss_nearest_int4:.4f}"],
        ["INT4, after QAT", f"{numbers.loss_qat_int4:.4f}"],
    ]
    return (
        "Loss on the same held-out answers. QAT has trained for longer than the other two, so part "
        f"of its gain is plain training.\n\n{_table(['weights', 'held-out loss'], rows)}"
    )


def _load(numbers: Figures) -> str:
    rows = [
        [
            STAGE_TITLES[name],
            f"{stage.load_entropy:.3f}",
            f"{stage.busiest_expert:.2f}",
            str(stage.experts_without_a_token),
        ]
        for name, stage in numbers.stages.items()
    ]
    head = ["stage", "load entropy (1 = even)", "busiest expert / mean", "experts without a token"]
    return f"At the last step of each stage.\n\n{_table(head, rows)}\n\n![load](expert-load.png)"


def _speed(numbers: Figures) -> str:
    rows = [
        [f"training, {STAGE_TITLES[name]}", f"{stage.tokens_per_second:,.0f} tokens/s"]
        for name, stage in numbers.stages.items()
    ]
    if numbers.decode_tokens_per_second is not None:
        rows.append(
            [
                f"INT4 answers, engine {numbers.decode_engine}",
                f"{numbers.decode_tokens_per_second:,.0f} tokens/s",
            ]
        )
    rows += [[name, _duration(seconds)] for name, seconds in numbers.seconds.items()]
    return _table(["", "median, or wall time"], rows)


def _model(results: Results, numbers: Figures) -> str:
    args = results.recipe.model
    rows = [
        ["layers, hidden size", f"{args.num_hidden_layers}, {args.hidden_size}"],
        [
            "experts",
            f"{args.num_local_experts} routed (top-{args.num_experts_per_tok}), 1 shared",
        ],
        ["parameters", f"{numbers.total_parameters:,} ({numbers.active_parameters:,} active)"],
        ["vocabulary", f"{args.vocab_size:,}"],
        ["INT4 checkpoint", f"{numbers.checkpoint_bytes:,} bytes"],
    ]
    return _table(["", "MobileMoE-tiny"], rows)


def _data(results: Results) -> str:
    rows = [
        [kind, f"{train['records']:,}", f"{train['characters']:,}", f"{held['records']:,}"]
        for kind, train in results.corpus["train"].items()
        for held in [results.corpus["heldout"][kind]]
    ]
    table = _table(["text", "records", "characters", "held-out records"], rows)
    modules = ", ".join(f"`{name}`" for name in results.corpus["heldout_modules"])
    return f"{table}\n\nHeld-out modules, never trained on: {modules}."


def _package(results: Results) -> str:
    exported = results.exported
    return (
        f"`{exported.package.name}` ({exported.package_bytes:,} bytes) and "
        f"`{exported.resources.name}` hold the INT4 checkpoint for an app (docs/ios.md). The saved "
        "package was evaluated op by op in numpy and compared with MLX:\n\n"
        f"```text\n{as_text(results.verified)}\n```"
    )


_SAMPLE_TITLES = {
    CODE: ("Code to continue", "It writes"),
    DOCUMENTATION: ("Documentation to continue", "It writes"),
    QUESTION: ("Question", "It answers"),
}


def _sample(sample: Sample) -> str:
    before, after = _SAMPLE_TITLES[sample.kind]
    return f"{before}:\n\n```text\n{sample.prompt}\n```\n\n{after}:\n\n```text\n{sample.text}\n```"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
