"""Whole models: against the PyTorch reference, and against themselves however they are fed."""

from __future__ import annotations

import threading
from pathlib import Path

import kernel_reference as reference
import numpy as np
import pytest
import torch
from kernel_library import Library
from kernel_model import read_folder

from mobilemoe_mlx.compare.torch_checkpoint import load_torch_model
from mobilemoe_mlx.compare.torch_model import Router
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.cpu_kernel.library import KernelError, Model
from mobilemoe_mlx.cpu_kernel.structures import BUSY, CANCELLED
from mobilemoe_mlx.engines.cpu_weights import kernel_config, kernel_model
from mobilemoe_mlx.model import rope_periods

TOKENS = 60
PRECISIONS = ("exact", "int16", "int8")

# Logits of two layers relative to the PyTorch reference's in float32.
LIMITS = {"exact": 1e-5, "int16": 1e-3, "int8": 5e-2}


@pytest.fixture(scope="module")
def folder(int4_folder: Path) -> tuple[ModelArgs, dict[str, np.ndarray]]:
    return read_folder(int4_folder)


@pytest.fixture(scope="module")
def tokens(tiny_args: ModelArgs) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.integers(0, tiny_args.vocab_size, TOKENS).astype(np.int32)


@pytest.fixture(scope="module")
def torch_logits(int4_folder: Path, tokens: np.ndarray) -> np.ndarray:
    """float32 [TOKENS, vocabulary]."""
    model = load_torch_model(int4_folder)
    return np.asarray(model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0])


def model(
    library: Library,
    folder: tuple[ModelArgs, dict[str, np.ndarray]],
    precision: str = "exact",
    threads: int = 2,
    cpu_path: str | None = None,
) -> Model:
    return kernel_model(library.runtime(precision, threads, cpu_path), *folder)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_are_those_of_pytorch(library, folder, tokens, torch_logits, cpu_path, precision):
    session = model(library, folder, precision, cpu_path=cpu_path).session(64, block=7)
    logits = session.feed(tokens, all_logits=True)
    assert reference.relative_error(logits, torch_logits) < LIMITS[precision]
    assert session.position == TOKENS


@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_a_narrow_cache_is_nearly_exact(library, folder, tokens, torch_logits, cpu_path, cache):
    session = model(library, folder, cpu_path=cpu_path).session(64, cache=cache)
    logits = session.feed(tokens, all_logits=True)
    errors = [
        reference.relative_error(y, wanted) for y, wanted in zip(logits, torch_logits, strict=True)
    ]
    # Of most tokens: where two experts score nearly alike, a rounded key may choose the other.
    assert 0 < np.median(errors) < {"float16": 1e-3, "int8": 3e-2}[cache]


@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("norm", ["input_layernorm", "post_attention_layernorm"])
def test_what_overflows_in_a_layer_is_seen_in_the_logits(
    library, folder, tokens, cpu_path, norm, precision, cache
):
    args, tensors = folder
    name = f"model.layers.0.{norm}.weight"
    huge = np.full_like(tensors[name], 0x7F7F)  # bfloat16's largest, 3.39e38
    session = model(library, (args, {**tensors, name: huge}), precision, cpu_path=cpu_path).session(
        64, cache=cache
    )
    for part in (tokens[:9], tokens[9:10]):
        assert not np.isfinite(session.feed(part, all_logits=True)).any()


def test_exact_logits_do_not_depend_on_how_tokens_are_fed(library, folder, tokens, cpu_path):
    """Decode, prefill, any block, any cut, any number of threads: the same bits."""
    whole = model(library, folder, threads=1, cpu_path=cpu_path).session(64)
    wanted = whole.feed(tokens, all_logits=True)
    for threads, block, cuts in [(2, 64, range(1, TOKENS)), (3, 5, (1, 2, 34)), (16, 1, ())]:
        session = model(library, folder, threads=threads, cpu_path=cpu_path).session(
            64, block=block
        )
        parts = np.split(tokens, list(cuts))
        logits = [session.feed(part, all_logits=True) for part in parts]
        np.testing.assert_array_equal(np.concatenate(logits), wanted)
        assert session.position == TOKENS


@pytest.mark.parametrize("precision", ("int16", "int8"))
def test_rounded_logits_hardly_depend_on_how_tokens_are_fed(
    library, folder, tokens, cpu_path, precision
):
    opened = model(library, folder, precision, cpu_path=cpu_path)
    wanted = opened.session(64).feed(tokens, all_logits=True)
    session = opened.session(64)
    one_by_one = np.concatenate([session.feed(tokens[i : i + 1]) for i in range(TOKENS)])
    assert reference.relative_error(one_by_one, wanted) < LIMITS[precision]
    for threads in (1, 5):
        other = model(library, folder, precision, threads, cpu_path).session(64)
        np.testing.assert_array_equal(other.feed(tokens, all_logits=True), wanted)


def test_last_logits_are_the_last_of_all(library, folder, tokens):
    opened = model(library, folder)
    np.testing.assert_array_equal(
        opened.session(64).feed(tokens), opened.session(64).feed(tokens, all_logits=True)[-1:]
    )


@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
def test_rewind_save_and_load(library, folder, tokens, cache):
    opened = model(library, folder)
    session = opened.session(64, cache=cache)
    session.feed(tokens[:20])
    saved = session.save()
    wanted = session.feed(tokens[20:])
    session.rewind(20)
    session.feed(tokens[:9])  # another continuation, then back again
    session.rewind(20)
    np.testing.assert_array_equal(session.feed(tokens[20:]), wanted)

    other = opened.session(context=TOKENS, cache=cache)
    other.feed(tokens[40:])
    other.load(saved)
    assert other.position == 20
    np.testing.assert_array_equal(other.feed(tokens[20:]), wanted)


def test_two_sessions_at_once(library, folder, tokens):
    opened = model(library, folder)
    wanted = [opened.session(64).feed(t, all_logits=True) for t in (tokens, tokens[::-1])]
    found: dict[int, np.ndarray] = {}

    def work(index: int) -> None:
        session = opened.session(64, block=4)
        ids = tokens[:: (1, -1)[index]]
        found[index] = np.concatenate([session.feed(ids[i : i + 6], True) for i in range(0, 60, 6)])

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in (0, 1):
        np.testing.assert_array_equal(found[index], wanted[index])


def test_a_session_that_is_in_a_call_is_busy(library, folder, tokens):
    session = model(library, folder, cpu_path="portable").session(context=2000)
    feeding = threading.Thread(target=session.feed, args=(np.resize(tokens, 2000),))
    feeding.start()
    refused: set[int] = set()
    while feeding.is_alive() and not refused:
        try:
            session.rewind(0)  # nothing is there to be forgotten until the call ends
        except KernelError as error:
            refused.add(error.status)
    feeding.join()
    assert refused == {BUSY}
    assert session.position == 2000


def test_cancel_leaves_the_session_as_it_was(library, folder, tokens):
    session = model(library, folder).session(64)
    session.feed(tokens[:10])
    session.cancel()
    with pytest.raises(KernelError) as raised:
        session.feed(tokens[10:])
    assert raised.value.status == CANCELLED
    assert session.position == 10
    fresh = model(library, folder).session(64)
    fresh.feed(tokens[:10])
    np.testing.assert_array_equal(session.feed(tokens[10:]), fresh.feed(tokens[10:]))


def test_rope_periods_are_those_of_the_model(library, tiny_args):
    _, periods = kernel_config(tiny_args, library)
    np.testing.assert_allclose(periods, rope_periods(tiny_args), rtol=2e-7)


def test_the_experts_that_were_chosen_are_known(library, folder, int4_folder, tokens, cpu_path):
    choices: list[np.ndarray] = []
    torch_model = load_torch_model(int4_folder)
    for module in torch_model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda *a: choices.append(a[2].experts.numpy()))
    torch_model(torch.from_numpy(tokens.astype(np.int64))[None])
    wanted = np.stack(choices).reshape(len(choices), TOKENS, -1)
    session = model(library, folder, cpu_path=cpu_path).session(64, block=40)
    with pytest.raises(KernelError, match="last 0 that were computed together"):
        session.experts(1)
    session.feed(tokens)  # 40 and 20
    for count in (20, 3):
        np.testing.assert_array_equal(session.experts(count), wanted[:, -count:])
    with pytest.raises(KernelError, match="21 tokens: the last 20"):
        session.experts(21)
    session.rewind(TOKENS - 1)
    with pytest.raises(KernelError, match="the last 0"):
        session.experts(1)
    session.feed(tokens[-1:])
    np.testing.assert_array_equal(session.experts(1), wanted[:, -1:])
