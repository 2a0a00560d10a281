"""Find a model folder: one on this machine, or a Hugging Face repo that is downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from mobilemoe_mlx.checkpoint.foreign import foreign_files
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.files import user_path

_CONFIG = "config.json"
# Data only: no pickles, no code.
_ALLOWED = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "LICENSE*",
    "USE_POLICY*",
    "README.md",
]
_IGNORED = ["*/*"]  # sub-folders hold other forms of the same weights

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(
    path_or_repo: str | Path, revision: str | None = None, *, config_only: bool = False
) -> Path:
    """The folder of a local path or, downloaded into Hugging Face's cache, of a repo `owner/name`.

    `revision`: a branch, tag or commit of the repo. `config_only`: of a repo, config.json alone is
    downloaded. Raises UserError saying what to do when the path does not exist or is an adapter or
    a training run, the repo is gated or unknown, or there is no network.
    """
    path = user_path(path_or_repo)
    if path.is_dir():
        if not (path / _CONFIG).exists() and (what := _adapter_or_run(path)) is not None:
            raise UserError(f"{path} is no model: {what}.")
        return path
    if path.exists():
        if (why := foreign_files(path)) is not None:
            raise UserError(f"{why} and give their folder.")
        raise UserError(
            f"{path} is a file: give the folder that config.json and *.safetensors are in."
        )
    text = str(path_or_repo)
    may_be_repo = not isinstance(path_or_repo, Path) and _REPO_ID.fullmatch(text)
    # `runs/tiny` looks like a repo; where there is a folder `runs`, a path was meant.
    if not may_be_repo or path.parent.is_dir():
        raise UserError(f"There is no folder {text}.")
    return _download(text, revision, [_CONFIG] if config_only else _ALLOWED)


def _adapter_or_run(folder: Path) -> str | None:
    """What to give in the place of an adapter's or a run's folder; None for all others."""
    for adapter in (folder, folder / "adapter"):
        if (adapter / "adapter_config.json").is_file():
            what = "it is an adapter" if adapter == folder else f"it is a run that left {adapter}"
            return (
                f"{what}, and `mobilemoe info {folder}` names its base and the commands to use it"
            )
    models = [*folder.glob("model/config.json"), *folder.glob("*/model/config.json")]
    if not models:
        return None
    return f"the training run has left {', '.join(str(path.parent) for path in sorted(models))}"


def _download(repo: str, revision: str | None, files: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=files, ignore_patterns=_IGNORED
            )
        )
    except errors.GatedRepoError as error:
        raise UserError(_gated(page)) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{page} has no revision '{revision}'.") from error
    except errors.RepositoryNotFoundError as error:
        # The hub answers 401 alike for a repo that does not exist and for one it may not show.
        raise UserError(
            f"There is neither a folder {repo} nor a repo {page} that you may see. Check the name; "
            "if the repo is private, log in with `hf auth login`, or set HF_TOKEN."
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise UserError(_gated(page)) from error
        raise UserError(
            f"{page} could not be downloaded: the hub answered "
            f"{error.response.status_code}. Try again later."
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"'{repo}' is neither a folder nor a repo id: {error}.") from error
    except Exception as error:  # the HTTP client's own errors differ between hub versions
        raise UserError(
            f"There is no folder {repo}, and {page} could not be reached: "
            "check the network, or give a local folder."
        ) from error


def _gated(page: str) -> str:
    return (
        f"{page} is gated. Open that page, log in and accept the licence; then make a token at "
        "https://huggingface.co/settings/tokens and either run `hf auth login` or set the "
        "environment variable HF_TOKEN to it."
    )
