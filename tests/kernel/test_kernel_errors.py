"""What a caller does wrong gives a code and a sentence, and leaves nothing half done."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from pathlib import Path

import kernel_library as k
import numpy as np
import pytest
from kernel_model import read_folder

from mobilemoe_mlx.cpu_kernel import structures as s
from mobilemoe_mlx.cpu_kernel.library import KernelError, Model
from mobilemoe_mlx.cpu_kernel.library import tensor as view
from mobilemoe_mlx.engines.cpu_weights import kernel_config, kernel_model, kernel_weights


def refused(status: int, part: str, call: Callable[[], object]) -> None:
    with pytest.raises(KernelError, match=part) as raised:
        call()
    assert raised.value.status == status
    assert str(raised.value).endswith(".")


@pytest.fixture(scope="module")
def model(library: k.Library, int4_folder: Path) -> Model:
    return kernel_model(library.runtime(), *read_folder(int4_folder))


def test_runtime(library: k.Library) -> None:
    refused(s.BAD_ARGUMENT, "0 threads", lambda: library.runtime(threads=0))
    refused(s.BAD_ARGUMENT, "17 threads", lambda: library.runtime(threads=17))
    refused(s.UNSUPPORTED_CPU, "sparc", lambda: library.runtime(cpu_path="sparc"))
    options = s.RuntimeOptions(9, 1, None)
    refused(
        s.BAD_ARGUMENT,
        "precision 9",
        lambda: library.call("runtime_create", c.byref(options), c.byref(c.c_void_p())),
    )
    refused(
        s.BAD_ARGUMENT, "NULL", lambda: library.call("runtime_create", None, c.byref(c.c_void_p()))
    )
    assert library.runtime(cpu_path="portable").cpu_path == "portable"
    assert library.runtime().cpu_path == library.cpu_paths()[0]


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("hidden_size", 48, "hidden_size is 48"),
        ("hidden_size", 128, "embed_tokens"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0"),
        ("num_attention_heads", 5, "heads is 5"),
        ("head_dim", 15, "head_dim is 15"),
        ("num_experts_per_tok", 8, "num_experts_per_tok is 8"),
        ("num_local_experts", 6, "Layer 0: router"),
        ("num_local_experts", -1, "num_local_experts is -1"),
        ("intermediate_size", 64, "experts.gate_up"),
        ("intermediate_size_mlp", -32, "intermediate_size_mlp is -32"),
        ("vocab_size", 479, "embed_tokens"),
        ("rms_norm_eps", 0.0, "rms_norm_eps"),
        ("rope_periods", None, "rope_periods is NULL"),
    ],
)
def test_model_sizes(
    library: k.Library, int4_folder: Path, field: str, value: object, part: str
) -> None:
    args, tensors = read_folder(int4_folder)
    config, _periods = kernel_config(args, library)
    weights, _layers = kernel_weights(args, tensors)
    setattr(config, field, value)
    refused(s.BAD_ARGUMENT, part, lambda: Model(library.runtime(), config, weights, None))


def test_model_tensors(library: k.Library, int4_folder: Path) -> None:
    args, tensors = read_folder(int4_folder)
    name = "model.layers.1.self_attn.v_proj.weight_scale"
    short = dict(tensors) | {name: tensors[name][:-1].copy()}
    refused(
        s.BAD_ARGUMENT,
        r"Layer 1: v_proj \(scales\) has",
        lambda: kernel_model(library.runtime(), args, short),
    )
    config, periods = kernel_config(args, library)
    weights, layers = kernel_weights(args, tensors)
    weights.norm = s.Tensor(None, 0)
    refused(
        s.BAD_ARGUMENT,
        "norm is missing",
        lambda: Model(library.runtime(), config, weights, (periods, layers)),
    )


def test_session(model: Model) -> None:
    for options, part in [
        ({"context": 0}, "context is 0"),
        ({"context": 1 << 30}, "context is"),
        ({"block": 0}, "block is 0"),
        ({"block": 5000}, "block is 5000"),
    ]:
        refused(
            s.BAD_ARGUMENT, part, lambda options=options: model.session(**{"context": 64} | options)
        )
    bad = s.SessionOptions(8, 3, 4)
    refused(
        s.BAD_ARGUMENT,
        "cache type 3",
        lambda: model.library.call(
            "session_create", model.pointer, c.byref(bad), c.byref(c.c_void_p())
        ),
    )


def test_feed(model: Model) -> None:
    session = model.session(context=8)
    session.feed([1, 2, 3])
    refused(s.CONTEXT_FULL, "6 tokens do not fit: 3 of", lambda: session.feed([1] * 6))
    refused(s.BAD_ARGUMENT, "Token 1 is 480", lambda: session.feed([1, 480]))
    refused(s.BAD_ARGUMENT, "Token 0 is -1", lambda: session.feed([-1]))
    refused(s.BAD_ARGUMENT, "0 tokens", lambda: session.feed([]))
    refused(s.BAD_ARGUMENT, "Rewinding to 4", lambda: session.rewind(4))
    refused(s.BAD_ARGUMENT, "Rewinding to -1", lambda: session.rewind(-1))
    assert session.position == 3
    session.feed([1] * 5)
    assert session.position == 8


def test_saved_caches(model: Model) -> None:
    session = model.session(context=32)
    session.feed(np.arange(20))
    saved = session.save()
    other = model.session(context=32)
    other.feed([7])
    refused(s.CONTEXT_FULL, "20 positions", lambda: model.session(context=16).load(saved))
    refused(s.BAD_ARGUMENT, "not a cache", lambda: other.load(saved[:10].copy()))
    refused(s.BAD_ARGUMENT, "bytes", lambda: other.load(saved[:-1].copy()))
    refused(s.BAD_ARGUMENT, "not a cache", lambda: model.session(64, cache="int8").load(saved))
    negative = saved.copy()
    negative[24:28] = 0xFF
    refused(s.CONTEXT_FULL, "-1 positions", lambda: other.load(negative))
    assert other.position == 1


def test_operators(library: k.Library) -> None:
    runtime = library.runtime()
    codes, scales = np.zeros((4, 16), np.uint8), np.zeros((4, 1), np.float16)
    x = np.zeros((2, 32), np.float32)
    for bad in (codes[:3].copy(), scales[:3].copy()):
        tensors = (bad, scales) if bad.dtype == np.uint8 else (codes, bad)
        weight = s.Int4(*map(view, tensors))
        room = runtime._workspace("linear_int4", 2, 4, 32)
        y = np.zeros((2, 4), np.float32)
        refused(
            s.BAD_ARGUMENT,
            "weight .* has",
            lambda weight=weight, y=y, room=room: library.call(
                "linear_int4",
                runtime.pointer,
                c.byref(weight),
                4,
                32,
                k.floats(x),
                2,
                k.floats(y),
                *room,
            ),
        )
    weight = s.Int4(view(codes), view(scales))
    refused(
        s.BAD_ARGUMENT,
        "workspace has 0 bytes",
        lambda: library.call(
            "linear_int4",
            runtime.pointer,
            c.byref(weight),
            4,
            32,
            k.floats(x),
            2,
            k.floats(np.zeros((2, 4), np.float32)),
            None,
            c.c_size_t(0),
        ),
    )
    for sizes in ((0, 4, 32), (2, 0, 32), (2, 4, 33), (-1, 4, 32)):
        assert library.function("linear_int4_workspace")(runtime.pointer, *sizes) == 0
    refused(
        s.BAD_ARGUMENT,
        "Token 1 is 4",
        lambda: runtime.embedding(codes, scales, np.array([0, 4], np.int32)),
    )
    shape = k.AttentionShape(2, 1, 16, 4, 0, 1e-5, 0.25)
    q, kv = np.zeros((5, 2, 16), np.float32), np.zeros((5, 1, 16), np.float32)
    periods = np.ones(8, np.float32)
    refused(
        s.CONTEXT_FULL,
        "5 tokens at position 0",
        lambda: runtime.attention(shape, q, kv, kv, 0, None, None, periods),
    )


def test_what_is_not_a_number_is_no_crash(library: k.Library, int4_folder: Path) -> None:
    args, tensors = read_folder(int4_folder)
    for precision in s.PRECISIONS:
        broken = dict(tensors)
        broken["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], 0x7FC0)
        broken["model.layers.0.input_layernorm.weight"] = broken["model.norm.weight"]
        session = kernel_model(library.runtime(precision), args, broken).session(64)
        for tokens in ([1], [2, 3, 4, 5, 6]):
            session.feed(tokens)
        assert session.position == 6


def test_abi_version(library: k.Library) -> None:
    header = (k.KERNEL / "include" / "mobilemoe.h").read_text(encoding="utf-8")
    version = library.function("abi_version")()
    assert f"#define MOBILEMOE_ABI_VERSION {version}\n" in header
