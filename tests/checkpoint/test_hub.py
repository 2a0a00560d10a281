"""Repo ids and paths: what Hugging Face refuses is explained; no network is used here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from mobilemoe_mlx.checkpoint import hub
from mobilemoe_mlx.errors import UserError


def hub_answers(monkeypatch: pytest.MonkeyPatch, answer: Exception | str) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def http_error(kind: type[hub_errors.HfHubHTTPError], status: int) -> Exception:
    # Hub versions differ in the HTTP client whose response this is; they read the same of it.
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("refused", response=response)


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        (hub_errors.GatedRepoError, 403, ["accept the licence", "HF_TOKEN", "hf auth login"]),
        (hub_errors.HfHubHTTPError, 401, ["accept the licence", "HF_TOKEN", "hf auth login"]),
        (hub_errors.HfHubHTTPError, 403, ["accept the licence", "HF_TOKEN", "hf auth login"]),
        (hub_errors.HfHubHTTPError, 503, ["503", "later"]),
        (hub_errors.RepositoryNotFoundError, 401, ["neither a folder", "Check the name"]),
        (hub_errors.RevisionNotFoundError, 404, ["no revision 'v9'"]),
    ],
)
def test_what_the_hub_refuses_is_explained(
    monkeypatch: pytest.MonkeyPatch,
    kind: type[hub_errors.HfHubHTTPError],
    status: int,
    words: list[str],
) -> None:
    hub_answers(monkeypatch, http_error(kind, status))
    with pytest.raises(UserError) as error:
        hub.resolve("facebook/MobileMoE-S-QAT", "v9")
    assert all(w in str(error.value) for w in [*words, "facebook/MobileMoE-S-QAT"])


@pytest.mark.parametrize(
    "answer", [hub_errors.LocalEntryNotFoundError("offline"), ConnectionError("no route")]
)
def test_no_network_is_explained(monkeypatch: pytest.MonkeyPatch, answer: Exception) -> None:
    hub_answers(monkeypatch, answer)
    with pytest.raises(UserError, match="check the network") as error:
        hub.resolve("facebook/MobileMoE-S")
    assert str(answer) not in str(error.value)  # which may be a paragraph of the library's


def test_a_repo_is_downloaded_without_code_or_pickles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = hub_answers(monkeypatch, str(tmp_path))
    assert hub.resolve("facebook/MobileMoE-S", "main") == tmp_path
    (call,) = calls
    assert (call["repo"], call["revision"]) == ("facebook/MobileMoE-S", "main")
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    wanted += ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    others = ["modeling.py", "pytorch_model.bin", "original/x.safetensors", "x.pt", "x.pkl"]
    patterns = {k: call[k] for k in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(wanted + others, **patterns)) == wanted


@pytest.mark.parametrize("text", ["./x/y", "/no/such", "~/no/such", "a/b/c", "nothing", "../a"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    calls = hub_answers(monkeypatch, "unused")
    with pytest.raises(UserError, match="There is no folder"):
        hub.resolve(text)
    assert not calls


def test_a_path_below_a_local_folder_is_no_repo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = hub_answers(monkeypatch, "unused")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no folder runs/tiny"):
        hub.resolve("runs/tiny")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        hub.resolve(tmp_path / "file")
    assert not calls


def test_an_adapter_or_a_run_in_the_place_of_a_model_is_told(tmp_path: Path) -> None:
    for path in (
        "run/adapter/adapter_config.json",
        "full/model/config.json",
        "all/sft/model/config.json",
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("{}")
    for name, said in (
        ("run", "it is a run that left .*run/adapter, and `mobilemoe info"),
        ("run/adapter", "it is an adapter, and `mobilemoe info .*names its base"),
        ("full", "the training run has left .*full/model"),
        ("all", "the training run has left .*all/sft/model"),
    ):
        with pytest.raises(UserError, match=f"is no model: {said}"):
            hub.resolve(str(tmp_path / name))
    assert hub.resolve(tmp_path / "full" / "model") == tmp_path / "full" / "model"
