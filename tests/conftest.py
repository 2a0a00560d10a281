"""Tiny checkpoints of both published layouts, with a small trained tokenizer, for all tests."""

from __future__ import annotations

import inspect
import runpy
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

from mobilemoe_mlx import mlx_on_linux

mlx_on_linux.prepare()  # before MLX is imported

import mlx.core as mx  # noqa: E402

# Tolerances are those of float32 on the CPU; what Metal computes is in test_macos.py. Set before
# mlx-lm is imported, which makes its stream on the default device.
mx.set_default_device(mx.cpu)

import pytest  # noqa: E402
from small_quickstart import make_quickstart  # noqa: E402
from training_fixtures import write_family  # noqa: E402

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint  # noqa: E402
from mobilemoe_mlx.config import ModelArgs  # noqa: E402
from mobilemoe_mlx.tokenizer import train_tokenizer  # noqa: E402

VOCABULARY = 480
_BUILD_SCRIPT = Path(__file__).parents[1] / "coreml" / "kernel" / "build_library.py"


@pytest.fixture(scope="session", autouse=True)
def built_kernel() -> str | None:
    """Compiles what changed of the CPU kernel, before any test; -> why not, where that cannot be.

    Autouse, since commands choose the engine by whether there is a kernel.
    """
    script = runpy.run_path(str(_BUILD_SCRIPT))
    try:
        script["build_library"]()
    except script["NoCompiler"] as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def kernel_is_built(built_kernel: str | None) -> None:
    """Skips tests of the CPU kernel where it cannot be built."""
    if built_kernel is not None:
        pytest.skip(built_kernel)


@pytest.fixture(scope="session")
def tiny_args() -> ModelArgs:
    """Two layers, with sizes that differ where one could stand in for another by mistake."""
    return ModelArgs(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=32,
        intermediate_size_mlp=160,
        num_local_experts=7,
        num_experts_per_tok=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=(2,),
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a SentencePiece tokenizer of VOCABULARY tokens; do not write into it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([inspect.getsource(textwrap)], VOCABULARY, folder)
    return folder


@pytest.fixture(scope="session")
def bf16_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_args: ModelArgs, tokenizer_folder: Path
) -> Path:
    """A BF16 checkpoint of `tiny_args` with tokenizer; do not write into it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "bf16"
    write_random_checkpoint(folder, tiny_args, seed=1, quantized=False)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def int4_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_args: ModelArgs, tokenizer_folder: Path
) -> Path:
    """A packed INT4 checkpoint of `tiny_args` with tokenizer; do not write into it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "int4"
    write_random_checkpoint(folder, tiny_args, seed=2, quantized=True)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `datasets`' cache in training tests; also for their subprocesses."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def datasets_cache(cache: Path) -> Iterator[None]:
    """Keeps this process's `datasets` in `cache` (`pytest.mark.usefixtures`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
        yield


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """The recipe of a very small family, with its data (training_fixtures.py)."""
    return write_family(tmp_path_factory.mktemp("family"), tokenizer_folder)


@pytest.fixture(scope="session")
def quickstart_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small quickstart has run; do not write into it."""
    home = tmp_path_factory.mktemp("home")
    make_quickstart(home)
    return home
