"""Recipes: the shipped families against the paper's table, overrides, and every kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_fixtures import RECIPE, ROOT

from mobilemoe_mlx.config import PRESETS
from mobilemoe_mlx.data.mixture_config import load_mixture
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.train.recipe import STAGES, StageConfig, load_recipe

# model.md, training recipe: tokens, context, peak learning rate, schedule.
PAPER = {
    "pretrain": (6_000_000_000_000, 2048, 4e-4, "cosine"),
    "midtrain": (500_000_000_000, 8192, 4e-5, "linear"),
    "sft": (126_000_000_000, 8192, 4e-6, "cosine"),
    "qat": (21_000_000_000, 8192, 4e-6, "cosine"),
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("name", ["S", "M", "L"])
def test_shipped_families_hold_the_papers_values(name: str):
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    assert recipe.name == name
    assert recipe.model == PRESETS[name]
    assert list(recipe.stages) == list(PAPER)
    for stage, (tokens, context, peak_lr, schedule) in PAPER.items():
        config = recipe.stages[stage]
        assert (config.tokens, config.data.context) == (tokens, context)
        assert (config.optimizer.peak_lr, config.optimizer.schedule) == (peak_lr, schedule)
        assert config.routing.z_loss == 1e-4
        assert config.routing.bias_update_rate == 1e-3
        assert config.quantize == (stage == "qat")
        assert config.compute.dtype == "bfloat16"
        assert config.steps == -(-tokens // (config.batch_size * context))
    assert recipe.stages["qat"].data.mixture == recipe.stages["sft"].data.mixture


@pytest.mark.parametrize("name", ["tiny", "S", "M", "L"])
def test_shipped_families_name_mixtures_that_exist(name: str):
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    formats = {
        s: load_mixture(recipe.path(c.data.mixture)).format for s, c in recipe.stages.items()
    }
    assert formats == {"pretrain": "text", "midtrain": "text", "sft": "chat", "qat": "chat"}
    for config in recipe.stages.values():
        assert config.data.context <= recipe.model.max_position_embeddings
        if config.micro_batch_size:
            assert config.batch_size % config.micro_batch_size == 0


def test_a_shipped_recipe_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "S").mkdir()  # a folder of that name is not a recipe
    for name in ("S", "S.toml", "recipes/S.toml"):
        assert load_recipe(name).name == "S"
    with pytest.raises(UserError, match="mine"):  # never another file than the one asked for
        load_recipe("mine/S.toml")


def test_stages_override_what_they_share(recipe_file: Path):
    stages = load_recipe(recipe_file).stages
    assert list(stages) == list(STAGES)
    assert {stage.data.context for stage in stages.values()} == {32}
    assert [stage.optimizer.schedule for stage in stages.values()].count("linear") == 1
    assert [stage.data.seed for stage in stages.values()] == [0, 0, 0, 1]


def test_stages_to_keep(recipe_file: Path):
    recipe = load_recipe(recipe_file, stages=["qat", "sft"])
    assert list(recipe.stages) == ["sft", "qat"]  # in their order
    with pytest.raises(UserError, match=r"'stf'.*did you mean 'sft'"):
        load_recipe(recipe_file, stages=["stf"])


@pytest.mark.parametrize(
    ("override", "path", "stages", "value"),
    [
        ("batch_size=8", "batch_size", STAGES, 8),
        ("optimizer.peak_lr=1e-4", "optimizer.peak_lr", STAGES, 1e-4),
        ("optimizer.peak_lr=1", "optimizer.peak_lr", STAGES, 1.0),
        ("sft.data.context=16", "data.context", ["sft"], 16),
        ("qat.tokens=4e3", "tokens", ["qat"], 4000),
        ("compute.dtype=bfloat16", "compute.dtype", STAGES, "bfloat16"),
        ("compute.activation_checkpointing=true", "compute.activation_checkpointing", STAGES, True),
        ("data.heldout=['a', 'b']", "data.heldout", STAGES, ("a", "b")),
        ("sft.data.heldout=c.jsonl", "data.heldout", ["sft"], ("c.jsonl",)),
        ("midtrain.data.heldout=[]", "data.heldout", ["midtrain"], ()),
        (" batch_size = 2 ", "batch_size", STAGES, 2),
        ("data.folder=a folder/with=signs", "data.folder", STAGES, "a folder/with=signs"),
        ("routing.bias_update_rate=0", "routing.bias_update_rate", STAGES, 0.0),
    ],
)
def test_overrides(recipe_file: Path, override, path, stages, value):
    before, after = load_recipe(recipe_file).stages, load_recipe(recipe_file, [override]).stages
    for name in STAGES:
        found = _get(after[name], path)
        expected = value if name in stages else _get(before[name], path)
        assert found == expected and type(found) is type(expected)


def _get(config: StageConfig, path: str) -> object:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def test_overrides_of_the_model_and_the_tokenizer(recipe_file: Path):
    overrides = ["model.num_hidden_layers=3", "tokenizer.path=some/folder", "model.rope_theta=5e5"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.model.num_hidden_layers == 3 and len(recipe.model.layer_types) == 3
    assert recipe.model.rope_theta == 5e5
    assert recipe.tokenizer == "some/folder"


def test_a_later_override_wins(recipe_file: Path):
    overrides = ["batch_size=2", "sft.batch_size=3", "sft.batch_size=6"]
    assert load_recipe(recipe_file, overrides).stages["sft"].batch_size == 6


@pytest.mark.parametrize(
    ("line", "misspelt", "nearest"),
    [
        ("[modle]\n", "modle", "model"),
        ("[model]\nhiden_size = 32\n", "hiden_size", "hidden_size"),
        ("[model]\npreset = 'tiny'\n[tokenizer]\npth = 'x'\n", "pth", "path"),
        ("[stages.midtrian]\n", "midtrian", "midtrain"),
        ("[stages.sft]\nbatch_sise = 2\n", "batch_sise", "batch_size"),
        ("[common]\ncheckpoint_evry = 2\n", "checkpoint_evry", "checkpoint_every"),
        ("[common.optimizer]\npeaklr = 2\n", "peaklr", "peak_lr"),
        ("[common.optimiser]\n", "optimiser", "optimizer"),
        ("[common.data]\nmixtures = 'x'\n", "mixtures", "mixture"),
        ("[common.routing]\nz_los = 1e-4\n", "z_los", "z_loss"),
        ("[common.compute]\ntype = 'x'\n", "type", "dtype"),
    ],
)
def test_a_misspelt_key_names_the_nearest(tmp_path: Path, line, misspelt, nearest):
    path = tmp_path / "mine.toml"
    whole = {
        "model": "[model]\npreset = 'tiny'\n",
        "stages": "[stages.pretrain]\ntokens = 5\nbatch_size = 2\n"
        "[stages.pretrain.data]\nmixture = 'm'\ncontext = 4\n"
        "[stages.pretrain.optimizer]\npeak_lr = 1e-3\n",
    }
    kept = "".join(text for table, text in whole.items() if f"[{table}]" not in line)
    path.write_text(kept + line)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert f"'{misspelt}' (did you mean '{nearest}'?)" in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=9e18", "pretrain.batch_size is 9,000,000,000,000,000,000, so a step would"),
        # Misspelt, at every level.
        ("modle.hidden_size=2", "did you mean 'model'"),
        ("midtrian.tokens=5", "did you mean 'midtrain'"),
        ("tokenizr.path=x", "did you mean 'tokenizer'"),
        ("batch_sise=3", "did you mean 'batch_size'"),
        ("optimzer.peak_lr=1", "did you mean 'optimizer'"),
        ("sft.optimzer.peak_lr=1", "sft has no key 'optimzer'.*did you mean 'optimizer'"),
        ("sft.optimizer.peak=1", "sft.optimizer has no key 'peak'.*did you mean 'peak_lr'"),
        ("model.hiden_size=32", "model has no key 'hiden_size'.*did you mean 'hidden_size'"),
        ("tokenizer.pth=x", "did you mean 'path'"),
        ("seed=1", "has no key 'seed'; known: .*batch_size.*sft"),
        # Not an override of a value.
        ("batch_size", "'batch_size' is not of the form KEY=VALUE"),
        ("=5", "not of the form KEY=VALUE"),
        ("data..context=5", "not of the form KEY=VALUE"),
        ("model=5", "names a whole table"),
        ("pretrain=5", "names a whole table"),
        ("data=5", "pretrain.data must be a table"),
        ("batch_size.x=5", "batch_size is a value, not a table"),
        # Of the wrong type, or senseless.
        ("batch_size=2.5", "pretrain.batch_size is 2.5; it must be a whole number"),
        ("batch_size=true", "must be a whole number"),
        ("batch_size=many", "'many'; it must be a whole number"),
        ("batch_size=0", "must be >= 1"),
        ("tokens=inf", "must be a whole number"),
        ("data.document_mask=yes", "must be true or false"),
        ("data.heldout=[1]", "must be a list of strings"),
        ("data.seed=-1", "pretrain.data.seed is -1; it must be >= 0"),
        ("optimizer.schedule=cosin", "must be one of cosine, linear"),
        ("compute.dtype=float16", "must be one of float32, bfloat16"),
        ("optimizer.peak_lr=nan", "pretrain.optimizer.peak_lr is nan"),
        ("optimizer.peak_lr=0", "must be above 0"),
        ("optimizer.beta1=1", "must be below 1"),
        ("optimizer.weight_decay=inf", "pretrain.optimizer.weight_decay is inf"),
        ("optimizer.final_lr_fraction=1.5", "must be in 0..1"),
        ("routing.z_loss=-1", "must be >= 0"),
        ("micro_batch_size=-1", "must be >= 0"),
        ("model.preset=7", "model.preset must be one of tiny, S, M, L"),
        ("model.preset=tinny", "did you mean 'tiny'"),
        ("model.hidden_size=wide", "model.hidden_size is 'wide'"),
        ("model.hidden_size=33", "model.hidden_size is 33; it must be a multiple"),
        ("tokenizer.path=5", "tokenizer.path is 5"),
        ("model.eos_token_id=480", "model.eos_token_id is 480; the vocabulary has 480"),
        ("model.eos_token_id=end", "model.eos_token_id is 'end'; token ids"),
        ("model.bos_token_id=start", "model.bos_token_id is 'start'; it must be a whole number"),
        ("model.no_rope_layers=5", "model.no_rope_layers is 5; it must be a list"),
        ("model.layer_types=full_attention", "model.layer_types is 'full_attention'; it must be a"),
        ("model.rope_theta=" + "9" * 400, "model.rope_theta is 9+; it must be a smaller number"),
        ("optimizer.peak_lr=" + "9" * 400, "peak_lr is 9+; it must be a smaller number"),
        ("optimizer.peak_lr=" + "9" * 5000, "peak_lr is '9+'; it must be a number"),
        ("tokens=" + "9" * 400, "tokens is 9+; it must be a smaller number"),
        # A warm-up as long as the stage, of 8 steps.
        ("midtrain.optimizer.warmup_steps=8", r"midtrain.optimizer.warmup_steps \(8\).*8 steps"),
    ],
)
def test_bad_overrides_say_what_is_wrong(recipe_file: Path, override: str, message: str):
    with pytest.raises(UserError, match=message):
        load_recipe(recipe_file, [override])


def test_one_end_token_may_be_given_as_a_number(recipe_file: Path):
    assert load_recipe(recipe_file, ["model.eos_token_id=5"]).model.eos_token_id == (5,)


def test_an_override_of_a_stage_that_is_not_run_is_refused(recipe_file: Path):
    with pytest.raises(UserError, match="not being run"):
        load_recipe(recipe_file, ["pretrain.tokens=5"], stages=["sft"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x =", "not valid TOML"),
        ("", "at least one"),
        ("stages = 5\n", "at least one"),
        ("[stages]\nsft = 5\n", "stages.sft must be a table"),
        ("model = 'S'\n[stages.sft]\n", "model must be a table"),
        ("common = 5\n[stages.sft]\n", "common must be a table"),
        ("tokenizer = 'x'\n[stages.sft]\n", "tokenizer must be a table"),
        ("[stages.sft]\n", "model.preset must be one of"),
        ("[model]\npreset = 'tiny'\n[stages.sft]\n", "sft.optimizer is missing"),
        (RECIPE.replace('mixture = "text.toml"', ""), "pretrain.data.mixture is missing"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, content: str, message: str):
    path = tmp_path / "mine.toml"
    path.write_text(content)
    # With an override that would have to go into a broken table.
    for overrides in ([], ["tokenizer.path=x"]):
        with pytest.raises(UserError, match=message) as error:
            load_recipe(path, overrides)
        assert str(path) in str(error.value)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing.toml: No such file"):
        load_recipe(tmp_path / "nothing.toml")
