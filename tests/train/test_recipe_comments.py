"""The commands in the comments of recipes/*.toml, as they are typed, on a small stand-in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_fixtures import ROOT, WORDS

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.cli.main import command_parser
from mobilemoe_mlx.train import run as runs
from mobilemoe_mlx.train.recipe import Recipe, load_recipe
from mobilemoe_mlx.train.run import train

pytestmark = pytest.mark.usefixtures("datasets_cache")

SMALL = (
    "model.preset=tiny",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "model.head_dim=16",
    "model.intermediate_size=32",
    "model.intermediate_size_mlp=64",
    "model.num_local_experts=8",
    "model.num_experts_per_tok=2",
    "model.vocab_size=480",
    "model.max_position_embeddings=2048",
)


def commands() -> Iterator[str]:
    for file in sorted((ROOT / "recipes").glob("*.toml")):
        comments = "\n".join(re.findall(r"^# ?(.*)", file.read_text(), re.MULTILINE))
        for command in re.findall(r"^  (mobilemoe (?:.*\\\n)*.*)$", comments, re.MULTILINE):
            yield command.replace("\\\n", " ")


COMMANDS = list(commands())


def test_every_recipe_shows_one():
    shown = {shlex.split(command)[2] for command in COMMANDS}
    assert shown == {"tiny", "S", "M", "L"}


class Planned(Exception):
    """Everything has been looked at; the first step would follow."""


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--init" in c])
def test_it_works_up_to_the_first_step(
    command: str, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    records = (
        {
            "messages": [
                {"role": "user", "content": f"what does the {word} see?"},
                {"role": "assistant", "content": f"the {word} sees a tree"},
            ]
        }
        for word in WORDS
    )
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, records)))
    Path("my-mixture.toml").write_text(
        'format = "chat"\n[[sources]]\nname = "mine"\nweight = 1.0\nfiles = ["mine.jsonl"]\n'
    )
    args = command_parser("train").parse_args(shlex.split(command)[2:])
    recipe: Recipe = load_recipe(args.recipe, [*args.overrides, *SMALL], args.stage)
    write_random_checkpoint(tmp_path / "base", recipe.model, seed=1, quantized=False)
    for file in tokenizer_folder.iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())

    def stop(*_: object) -> None:
        raise Planned

    monkeypatch.setattr(runs, "_run_stages", stop)
    with pytest.raises(Planned):
        train(recipe, args.run, init=str(tmp_path / "base"), seed=args.seed)
    assert (Path(args.run) / "recipe.json").exists()
