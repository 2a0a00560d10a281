"""`mobilemoe eval MODEL`: benchmark scores, by the tasks of lm-evaluation-harness."""

from __future__ import annotations

import argparse
import re
import shlex
import sys

from mobilemoe_mlx import files
from mobilemoe_mlx.cli.engine_arguments import add_engine_arguments, engine_options
from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.cli.signals import ended_by_signals

EXAMPLES = (
    "mobilemoe eval runs/quickstart/training/qat/model --include runs/stdlib-tasks --tasks stdlib "
    "--limit 20",
    "mobilemoe eval runs/quickstart/training/sft/model --include runs/stdlib-tasks --tasks "
    "stdlib_cloze --engine mlx --out runs/eval-sft --log-samples --json runs/eval.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "`mobilemoe corpus runs/stdlib-tasks --tasks` makes the tasks of the examples. A published "
        "model:\nmobilemoe eval facebook/MobileMoE-S-QAT --suite paper14"
    )
    parser.add_argument(
        "model", help="a checkpoint folder, a Hugging Face repository id or an ONNX export"
    )
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
    from mobilemoe_mlx.evaluation.results_table import as_text
    from mobilemoe_mlx.evaluation.run import EvaluationOptions, evaluate

    out = args.out or _default_folder(args)
    output = sys.stderr if prints_json(args.json) else sys.stdout
    options = EvaluationOptions(
        shots=args.shots,
        limit=args.limit,
        chat=args.chat,
        include=tuple(files.user_path(folder) for folder in args.include),
        data_dir=None if args.data_dir is None else files.user_path(args.data_dir),
        allow_code_execution=args.allow_code_execution,
        log_samples=args.log_samples,
        resume=args.resume,
    )
    engine = engine_options(args)
    try:
        with ended_by_signals():
            results = evaluate(
                args.model,
                args.tasks,
                suite=args.suite,
                folder=out,
                options=options,
                say=lambda text: print(text, file=output, flush=True),
                **{**engine, "adapters": engine["adapters"] or ()},
            )
    except (KeyboardInterrupt, SystemExit) as end:
        _tell_how_to_go_on(args, out)
        return end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 130
    write_json(args.json, results.to_dict())
    if not prints_json(args.json):
        print(f"\n{as_text(results)}\n\nResults are in {out}")
    return 0


def _tell_how_to_go_on(args: argparse.Namespace, out: str) -> None:
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
    parts = [
        part for part in re.split(r"[/\\]+", args.model) if part not in ("", ".", "..", "runs")
    ]
    asked = [*([args.suite] if args.suite else []), *args.tasks]
    name = "-".join([*parts[-4:], *asked])
    return "runs/eval/" + re.sub(r"[^\w.-]", "_", name)[:120]


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"'{text}' is not like hellaswag,gsm8k")
    return names
