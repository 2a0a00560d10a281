"""`mobilemoe finetune MODEL --data PATH`: adapters or whole weights, on data of your own."""

from __future__ import annotations

import argparse
import shlex
import sys

from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json

METHODS = ("lora", "dora", "qlora", "qat-lora", "full", "qat", "experts")

EXAMPLES = (
    "mobilemoe finetune runs/quickstart/training/sft/model --data runs/quickstart/corpus/"
    "qa.heldout.jsonl --run runs/finetuned --set steps=20",
    "mobilemoe finetune runs/quickstart/training/qat/model --data runs/quickstart/corpus/"
    "qa.heldout.jsonl --run runs/finetuned-int4 --set steps=20 --set adapter.rank=4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("model", help="checkpoint folder or repository id: BF16 or INT4")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="a folder with train.jsonl (valid.jsonl, test.jsonl), a file, a mixture, or a "
        "Hugging Face dataset",
    )
    parser.add_argument("--run", help="folder of the run: metrics, checkpoints, the adapter")
    parser.add_argument(
        "--plan", action="store_true", help="say what the data holds and what memory it takes; stop"
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="what is trained (default: lora on BF16, qlora on INT4)",
    )
    parser.add_argument("--recipe", metavar="FILE", help="a recipe file of your own")
    parser.add_argument(
        "--loss-on", choices=("answers", "all"), help="which tokens are learnt (default: answers)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a value of the recipe: epochs=1, adapter.rank=16, optimizer.peak_lr=1e-4",
    )
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    parser.add_argument("--seed", type=int, default=0, help="of the adapters' first values")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; after a signal, returns 130 or 143 with everything saved."""
    check_json(args.json)
    from mobilemoe_mlx.adapters.adapter_info import next_lines
    from mobilemoe_mlx.errors import UserError
    from mobilemoe_mlx.finetune.run import FinetuneOptions, finetune
    from mobilemoe_mlx.finetune.run_info import describe_finetuning
    from mobilemoe_mlx.train.signals import Stopped

    output = sys.stderr if prints_json(args.json) else sys.stdout

    def say(text: str) -> None:
        print(text, file=output, flush=True)

    overrides = [*args.overrides]
    if args.loss_on is not None:
        overrides.append(f"data.loss_on={args.loss_on}")
    options = FinetuneOptions(
        method=args.method,
        recipe=args.recipe,
        overrides=tuple(overrides),
        resume=args.resume,
        seed=args.seed,
        plan=args.plan,
    )
    if args.run is None and not args.plan:
        raise UserError(
            "The run needs a folder: give one with --run, or --plan for the plan alone."
        )
    if args.plan and args.json is not None:
        raise UserError("--json describes a run that is finished: leave it out with --plan.")
    try:
        result = finetune(args.model, args.data, args.run or ".", options, say)
    except Stopped as stopped:
        say(f"Stopped; what was trained is saved. Go on with:\n  {_again(args)}")
        return stopped.exit_status
    if result is None:
        return 0
    what = "adapter" if result.name == "adapter" else "model"
    say(f"The trained {what} is in {result}")
    info = describe_finetuning(args.run)
    say("\n".join(next_lines(info.next)))
    write_json(args.json, info.to_dict())
    return 0


def _again(args: argparse.Namespace) -> str:
    words = ["mobilemoe", "finetune", args.model]
    words += ["--data", args.data] if args.data is not None else []
    words += ["--run", args.run]
    words += ["--method", args.method] if args.method is not None else []
    words += ["--recipe", args.recipe] if args.recipe is not None else []
    words += ["--loss-on", args.loss_on] if args.loss_on is not None else []
    words += [word for override in args.overrides for word in ("--set", override)]
    words += ["--seed", str(args.seed)] if args.seed else []
    return shlex.join([*words, "--resume"])
