"""`mobilemoe train RECIPE`: the stages of a recipe, or some of them."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mobilemoe_mlx.cli.json_option import add_json_argument, check_json, prints_json, write_json
from mobilemoe_mlx.train.recipe import STAGES, Recipe, load_recipe

EXAMPLES = (
    "mobilemoe train tiny",
    "mobilemoe train tiny --run runs/answers --stage sft --init "
    "runs/quickstart/training/midtrain/model --set data.folder=runs/quickstart/corpus --set "
    "tokens=50000",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", help="tiny, S, M or L, or a recipe file of your own")
    parser.add_argument(
        "--run",
        help="folder of the run: metrics, checkpoints (default: runs/ and the recipe's name)",
    )
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only this stage ({', '.join(STAGES)}); may be repeated",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a value: optimizer.peak_lr=1e-4 (all stages), sft.data.context=4096 (one)",
    )
    parser.add_argument("--init", help="start from this checkpoint folder or repository id")
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights (default 0)")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; after a signal, returns 130 or 143 with everything saved."""
    import mlx.core as mx

    from mobilemoe_mlx.train.processes import together
    from mobilemoe_mlx.train.run import train
    from mobilemoe_mlx.train.run_info import describe_run
    from mobilemoe_mlx.train.signals import Stopped

    group = mx.distributed.init()
    with together(group):
        check_json(args.json)
        recipe = load_recipe(args.recipe, args.overrides, args.stage)
    folder = args.run or f"runs/{recipe.name}"
    output = sys.stderr if prints_json(args.json) else sys.stdout

    def say(text: str) -> None:
        print(text, file=output, flush=True)

    try:
        model = train(recipe, folder, resume=args.resume, init=args.init, seed=args.seed, say=say)
    except Stopped as stopped:
        if group.rank() == 0:
            again = _command(args, folder, args.stage, args.overrides, args.init, resume=True)
            launcher = f"mlx.launch -n {group.size()} -- " if group.size() > 1 else ""
            say(f"Stopped; what was trained is saved. Go on with:\n  {launcher}{again}")
        return stopped.exit_status
    if group.rank() == 0:
        say(f"The trained model is in {model}")
        say("\n  ".join(["Next:", *_next_commands(args, recipe, folder, model)]))
        write_json(args.json, describe_run(folder).to_dict())
    return 0


def _next_commands(args: argparse.Namespace, recipe: Recipe, folder: str, model: Path) -> list[str]:
    """What to type after the run: use the model; train the stage that follows, if one does."""
    from mobilemoe_mlx.data.mixture_config import load_mixture
    from mobilemoe_mlx.errors import UserError

    last = list(recipe.stages)[-1]
    data = recipe.stages[last].data
    is_chat = load_mixture(recipe.path(data.mixture)).format == "chat"
    use = ["chat", str(model)] if is_chat else ["generate", str(model), "--prompt", "The"]
    commands = [_line(use)]
    for stage in STAGES[STAGES.index(last) + 1 :]:
        overrides = [o for o in args.overrides if o.split(".")[0].strip() not in STAGES]
        try:
            following = load_recipe(args.recipe, overrides, [stage])
            own = load_recipe(args.recipe, stages=[stage])
            formats = {
                load_mixture(r.path(r.stages[stage].data.mixture)).format for r in (following, own)
            }
        except UserError:
            continue  # the recipe has no such stage, or not with these overrides
        if len(formats) == 1:
            commands.append(_command(args, folder, [stage], overrides))
            break
    return commands


def _command(
    args: argparse.Namespace,
    folder: str,
    stages: Sequence[str],
    overrides: Sequence[str],
    init: str | None = None,
    *,
    resume: bool = False,
) -> str:
    words = ["train", args.recipe, "--run", folder]
    words += [word for stage in stages for word in ("--stage", stage)]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--init", init] if init is not None else []
    words += ["--seed", str(args.seed)] if args.seed else []
    return _line(words + (["--resume"] if resume else []))


def _line(words: Sequence[str]) -> str:
    """A command line of `mobilemoe` that works as it is typed."""
    program = sys.argv[0] if Path(sys.argv[0]).name == "mobilemoe" else "mobilemoe"
    if shutil.which("mobilemoe"):
        program = "mobilemoe"
    return shlex.join([program, *words])
