"""Mixtures: token shares, exact resume, and the mixture files of the recipes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from mobilemoe_mlx.data.mixture import (
    Mixture,
    document_encoder,
    text_encoder,
)
from mobilemoe_mlx.data.mixture_config import MixtureConfig, load_mixture
from mobilemoe_mlx.errors import UserError

MIXTURES = Path(__file__).parents[2] / "recipes" / "mixtures"
BOS, EOS = 256, 257

encode = text_encoder(lambda text: list(text.encode()), BOS, EOS)


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def make_mixture(folder: Path, seed: int = 0) -> Mixture:
    """Three sources with very different document lengths."""
    weights = {"long": 0.6, "short": 0.3, "middle": 0.1}
    lengths = {"long": 900, "short": 4, "middle": 60}
    tables = []
    for name, weight in weights.items():
        rows = [{"text": f"{name[0]}{i:03d}" * (lengths[name] // 4)} for i in range(11)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tables.append({"name": name, "weight": weight * 7, "files": [f"{name}.jsonl"]})
    config = MixtureConfig.from_dict({"format": "text", "sources": tables})
    return Mixture(config, folder, encode, seed)


def test_text_is_framed_and_bos_is_not_a_target() -> None:
    assert encode("ab") == ([BOS, 97, 98, EOS], [False, True, True, True])


def test_weights_are_shares_of_the_tokens(tmp_path: Path) -> None:
    mixture = make_mixture(tmp_path)
    longest = 902
    for n, document in enumerate(islice(mixture, 3000)):
        assert len(document.tokens) == len(document.loss) <= longest
        if n % 100:
            continue
        tokens = {name: entry.tokens for name, entry in mixture.statistics().items()}
        for name, share in {"long": 0.6, "short": 0.3, "middle": 0.1}.items():
            assert abs(tokens[name] - share * sum(tokens.values())) <= longest


def test_statistics_count_what_was_given(tmp_path: Path) -> None:
    mixture = make_mixture(tmp_path)
    given = list(islice(mixture, 500))
    statistics = mixture.statistics()
    assert sum(entry.documents for entry in statistics.values()) == len(given)
    assert sum(entry.tokens for entry in statistics.values()) == sum(
        len(document.tokens) for document in given
    )
    for entry in statistics.values():
        assert entry.epochs == entry.documents // 11


def test_resume_continues_exactly_anywhere(tmp_path: Path) -> None:
    mixture = make_mixture(tmp_path)
    states, documents = [], []
    for _ in range(200):
        states.append(json.dumps(mixture.state_dict()))
        documents.append(next(mixture))
    for at in range(0, 200, 23):
        resumed = make_mixture(tmp_path)
        resumed.load_state_dict(json.loads(states[at]))
        assert list(islice(resumed, 200 - at)) == documents[at:]
        assert resumed.state_dict() == mixture.state_dict()


def test_resuming_with_other_sources_is_refused(tmp_path: Path) -> None:
    mixture = make_mixture(tmp_path)
    state = mixture.state_dict()
    del state["short"]
    with pytest.raises(UserError, match="resume with the same mixture"):
        mixture.load_state_dict(state)


class _BareTokenizer:
    def get_vocab(self) -> dict[str, int]:
        return {"<|begin_of_text|>": 0}


def test_a_tokenizer_without_control_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"lacks <\|end_of_text\|>"):
        document_encoder(_BareTokenizer(), "text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('format = "text"', r"at least one \[\[sources\]\]"),
        ('format = "txt"', "format is 'txt' .*must be one of text, chat"),
        ('fromat = "text"', "no key 'fromat'.*mean 'format'"),
        ("format = ", "not valid TOML"),
        (
            'format = "text"\n' + '[[sources]]\nname = "a"\nweight = 1\npath = "b"\n' * 2,
            "two sources are named 'a'",
        ),
        (
            "".join(
                ['format = "text"\n']
                + [f'[[sources]]\nname = "{n}"\nweight = 1e308\npath = "b"\n' for n in "ab"]
            ),
            "sum of the sources' weights is not finite",
        ),
        (
            f'format = "text"\n[[sources]]\nname = "a"\nweight = {"9" * 400}\npath = "b"\n',
            "source 'a': weight is 9+; it must be a smaller number",
        ),
        (
            'format = "text"\n[[sources]]\nname = "a"\nweight = 1\nfile = ["b"]\n',
            "source 'a': there is no key 'file'.*mean 'files'",
        ),
    ],
)
def test_a_wrong_mixture_file_is_refused(toml: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(toml)
    with pytest.raises(UserError, match=f"mix.toml.*{message}"):
        load_mixture(path)


def test_a_missing_mixture_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read .*none\.toml"):
        load_mixture(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["pretrain", "midtrain", "sft"])
@pytest.mark.parametrize("size", ["", "tiny-"])
def test_the_recipes_mixtures_load(size: str, name: str) -> None:
    config = load_mixture(MIXTURES / f"{size}{name}.toml")
    assert config.format == ("chat" if name == "sft" else "text")
    assert sum(source.weight for source in config.sources) == pytest.approx(1)
    assert all(bool(source.files) == bool(size) for source in config.sources)


def test_web_has_the_papers_share_of_pretraining() -> None:
    sources = load_mixture(MIXTURES / "pretrain.toml").sources
    web = sum(source.weight for source in sources if source.name.startswith("web"))
    assert web == pytest.approx(0.62)
