"""`mobilemoe eval MODEL`: benchmark scores, by the tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.engine_arguments import add_engine_arguments, engine_options
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.signals import ended_by_signals
from mobilemoe_mlx.errors import Interrupted, Terminated, UserError
from mobilemoe_mlx.png_pictures import check_can_draw

if TYPE_CHECKING:
    from mobilemoe_mlx.evaluation.results import Results

EXAMPLES = (
    "mobilemoe eval runs/quickstart/training/qat/model --include runs/stdlib-tasks --tasks stdlib "
    "--limit 20",
    "mobilemoe eval runs/quickstart/training/sft/model --include runs/stdlib-tasks --tasks "
    "stdlib_cloze --engine mlx --out runs/eval-sft --log-samples --json runs/eval.json",
    "mobilemoe eval --compare BF16=runs/quickstart/training/sft/model "
    "INT4=runs/quickstart/training/qat/model --include runs/stdlib-tasks --tasks stdlib --limit 20 "
    "--engine mlx",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "`mobilemoe corpus runs/stdlib-tasks --tasks` makes the tasks of the examples. A published "
        "model:\nmobilemoe eval facebook/MobileMoE-S-QAT --suite paper14"
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="a checkpoint folder, a Hugging Face repository id or an ONNX export",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="MODEL",
        help="compare models, or folders of evaluations, with the first of them, question by "
        "question; NAME=MODEL names one in the tables",
    )
    parser.add_argument("--picture", metavar="FILE", help="of --compare: draw it into a PNG file")
    parser.add_argument(
        "--tasks",
        type=_names,
        default=[],
        metavar="NAME,NAME",
        help="tasks and groups of lm-evaluation-harness, or of --include",
    )
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="paper14 (the paper's benchmarks of base models), sft (of instruction-tuned ones) or "
        "quick (a few hundred questions)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the results (default: runs/eval/ and the names of model and tasks)",
    )
    parser.add_argument("--resume", action="store_true", help="go on where it was stopped")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="ask the first N questions of each task alone"
    )
    parser.add_argument(
        "--shots",
        type=int,
        metavar="K",
        help="examples before each question (default: the suite's, or the harness's)",
    )
    parser.add_argument(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="ask through the chat template (default: the suite sft does)",
    )
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with tasks of your own, in the harness's YAML; may be repeated",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="a folder with data sets, each in DIR/OWNER/NAME; they are looked for in Hugging "
        "Face's caches too, and nothing is downloaded",
    )
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="run the programs that the model writes for tasks like humaneval, in processes of "
        "their own with limits",
    )
    parser.add_argument(
        "--log-samples",
        action="store_true",
        help="keep prompts and answers of each question in DIR/samples/TASK.jsonl",
    )
    add_engine_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; after a signal, returns 130 or 143 with every answered batch kept."""
    check_json(args.json)
    _check_what_to_do(args)
    out = args.out or _default_folder(args)
    try:
        with ended_by_signals():
            if args.compare is not None:
                _compare(args, out)
                return 0
            results = _evaluate(args, args.model, out, resume=args.resume)
    except (Interrupted, Terminated) as end:
        _tell_how_to_go_on(args, out)
        return end.code if isinstance(end, Terminated) and isinstance(end.code, int) else 130
    from mobilemoe_mlx.evaluation.results_table import as_text

    write_json(args.json, results.to_dict())
    if not prints_json(args.json):
        print(f"\n{as_text(results)}\n\nResults are in {out}")
    return 0


def _check_what_to_do(args: argparse.Namespace) -> None:
    if (args.model is None) == (args.compare is None):
        raise UserError(
            "Name one model to evaluate, or several with --compare: `mobilemoe eval MODEL ...` or "
            "`mobilemoe eval --compare MODEL MODEL ...`."
        )
    if args.compare is not None and args.adapter:
        raise UserError(
            "--adapter is of one model, and --compare has several: evaluate the model with its "
            "adapter first, and compare the folder of that evaluation (its --out)."
        )
    if args.picture is not None and args.compare is None:
        raise UserError("--picture draws a comparison: leave it out, or give --compare.")
    if args.picture is not None:
        check_can_draw("--picture", args.picture)


def _evaluate(args: argparse.Namespace, model: str, out: str, *, resume: bool) -> Results:
    from mobilemoe_mlx.evaluation.run import EvaluationOptions, evaluate

    output = sys.stderr if prints_json(args.json) else sys.stdout
    options = EvaluationOptions(
        shots=args.shots,
        limit=args.limit,
        chat=args.chat,
        include=tuple(files.user_path(folder) for folder in args.include),
        data_dir=None if args.data_dir is None else files.user_path(args.data_dir),
        allow_code_execution=args.allow_code_execution,
        log_samples=args.log_samples,
        resume=resume,
    )
    engine = engine_options(args)
    return evaluate(
        model,
        args.tasks,
        suite=args.suite,
        folder=out,
        options=options,
        say=lambda text: print(text, file=output, flush=True),
        **{**engine, "adapters": engine["adapters"] or ()},
    )


def _compare(args: argparse.Namespace, out: str) -> None:
    """Evaluate those that are models, in OUT/NAME, and tell how they differ from the first.

    What was evaluated in OUT before is not evaluated again.
    """
    from mobilemoe_mlx.evaluation.comparison import check_enough, compare
    from mobilemoe_mlx.evaluation.comparison_picture import picture
    from mobilemoe_mlx.evaluation.comparison_table import as_text
    from mobilemoe_mlx.evaluation.results import is_evaluation, read_results

    named = named_models(args.compare)
    check_enough(named)
    done = {}
    for name, model in named.items():  # all of them, before a model is evaluated
        if is_evaluation(model):
            done[name] = read_results(model)
            if not done[name].finished:
                raise UserError(
                    f"{model} holds an evaluation that is not finished: go on with it first, by "
                    "the command that began it and --resume."
                )
    evaluations = {}
    for name, model in named.items():
        folder = f"{out}/{name}"
        evaluations[name] = done.get(name) or _evaluate(
            args, model, folder, resume=is_evaluation(folder)
        )
    found = compare(evaluations)
    if args.picture is not None:
        files.write(files.user_path(args.picture), picture(found))
    write_json(args.json, found.to_dict())
    if not prints_json(args.json):
        print(f"\n{as_text(found)}")


def named_models(words: Sequence[str]) -> dict[str, str]:
    """NAME=MODEL or MODEL as name -> model, in their order.

    A model without a name has that of its folder; of a folder `model` that of the one it is in.
    Raises UserError where two would have the same.
    """
    named: dict[str, str] = {}
    for word in words:
        name, equals, model = word.partition("=")
        if not equals or files.user_path(word).exists():
            *_, above, last = ["", *(part for part in re.split(r"[/\\]+", word) if part)]
            name, model = above if last == "model" and above else last, word
        name = re.sub(r"[^\w.-]", "-", name).strip("-.")
        if not name or not model:
            raise UserError(f"--compare {word}: give a model, or a name and a model, NAME=MODEL.")
        if name in named:
            raise UserError(
                f"--compare: {named[name]} and {model} would both be called {name}; give each a "
                "name of its own, NAME=MODEL."
            )
        named[name] = model
    return named


def _tell_how_to_go_on(args: argparse.Namespace, out: str) -> None:
    if args.compare is not None:
        print("\nStopped; the same command goes on with what was answered.", file=sys.stderr)
        return
    if not (files.user_path(out) / "results.json").is_file():
        print("\nStopped before the first question.", file=sys.stderr)
        return
    print(f"\nStopped; what was answered is kept. Go on with:\n  {_again(args)}", file=sys.stderr)


def _again(args: argparse.Namespace) -> str:
    """The command with `--resume`."""
    words = ["mobilemoe", "eval", args.model]
    words += ["--tasks", ",".join(args.tasks)] if args.tasks else []
    for name in ("suite", "out", "limit", "shots", "data_dir", "engine", "precision", "threads"):
        if (value := getattr(args, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if args.expert_memory is not None:
        words += ["--expert-memory", str(args.expert_memory)]
    if args.chat is not None:
        words.append("--chat" if args.chat else "--no-chat")
    words += [word for folder in args.include for word in ("--include", folder)]
    words += [word for adapter in args.adapter for word in ("--adapter", adapter)]
    words += ["--allow-code-execution"] if args.allow_code_execution else []
    words += ["--log-samples"] if args.log_samples else []
    return shlex.join([*words, "--resume"])


def _default_folder(args: argparse.Namespace) -> str:
    """runs/eval/ and the last parts of the model's name, and what it is asked."""
    models = args.model if args.compare is None else "compare/" + "/".join(args.compare)
    parts = [part for part in re.split(r"[/\\=]+", models) if part not in ("", ".", "..", "runs")]
    asked = [*([args.suite] if args.suite else []), *args.tasks]
    name = "-".join([*parts[-4:], *asked])
    return "runs/eval/" + re.sub(r"[^\w.-]", "_", name)[:120]


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"'{text}' is not like hellaswag,gsm8k")
    return names
