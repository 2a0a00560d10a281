"""`mobilemoe train RECIPE`: the stages of a recipe, or some of them."""

from __future__ import annotations

import argparse

from mobilemoe_mlx.train.recipe import STAGES

EXAMPLES = (
    "mobilemoe train tiny --run runs/mine --set tokenizer.path=runs/quickstart/tokenizer "
    "--set data.folder=runs/quickstart/corpus",
    "mobilemoe train tiny --run runs/answers --stage sft --init "
    "runs/quickstart/training/midtrain/model --set data.folder=runs/quickstart/corpus --set "
    "tokens=50000",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", help="a recipe file, such as recipes/tiny.toml")
    parser.add_argument("--run", required=True, help="folder of the run: metrics, checkpoints")
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


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    import mlx.core as mx

    from mobilemoe_mlx.train.recipe import load_recipe
    from mobilemoe_mlx.train.run import train

    recipe = load_recipe(args.recipe, args.overrides, args.stage)
    folder = train(recipe, args.run, resume=args.resume, init=args.init, seed=args.seed)
    if mx.distributed.init().rank() == 0:
        print(f"The trained model is in {folder}")
