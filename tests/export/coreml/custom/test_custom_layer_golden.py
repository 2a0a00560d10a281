"""The golden files: regenerated, computed again by MLX and PyTorch, and able to fail."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import KVCache
from safetensors import safe_open

from mobilemoe_mlx.compare import torch_checkpoint, torch_model
from mobilemoe_mlx.config import ModelArgs, RopeScaling
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.custom import golden
from mobilemoe_mlx.export.coreml.custom import reference as reference
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.measures import TensorError
from mobilemoe_mlx.quantized import int4_model

FOLDER = Path(__file__).parents[4] / "coreml" / "golden"

# The limit of coreml/README.md, section 8, for float32.
FLOAT32_LIMIT = 1e-5


class Golden(NamedTuple):
    """A file as the format's own library reads it."""

    kind: str
    parameters: dict[str, Any]
    cases: dict[str, str]
    tensors: dict[str, np.ndarray]

    def inputs(self, case: str) -> dict[str, np.ndarray]:
        """In the contract's order."""
        found = self._part("all.inputs") | self._part(f"{case}.inputs")
        order = [*contract.CLASSES[self.kind].inputs, *(f"rows_{i}" for i in range(9))]
        return {name: found[name] for name in order if name in found}

    def outputs(self, case: str) -> dict[str, np.ndarray]:
        return self._part(f"{case}.outputs")

    def router(self, case: str) -> dict[str, np.ndarray]:
        return self._part(f"{case}.router")

    def entries(self, prefix: str = "weights") -> list[np.ndarray]:
        """The arrays of `setWeightData`, by their numbers."""
        found = self._part(prefix)
        return [found[name] for name in sorted(found, key=lambda n: int(n.partition(".")[0]))]

    def _part(self, prefix: str) -> dict[str, np.ndarray]:
        prefix += "."
        return {n.removeprefix(prefix): a for n, a in self.tensors.items() if n.startswith(prefix)}


def load(name: str) -> Golden:
    with safe_open(FOLDER / f"{name}.safetensors", framework="np") as file:
        metadata = file.metadata()
        assert metadata["contract"] == str(contract.VERSION)
        return Golden(
            metadata["class"],
            json.loads(metadata["parameters"]),
            json.loads(metadata["cases"]),
            {key: file.get_tensor(key) for key in file.keys()},  # noqa: SIM118
        )


NAMES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
FILES = {name: load(name) for name in NAMES}
CASES = [(name, case) for name, file in FILES.items() for case in file.cases]


def test_generating_gives_the_files(tmp_path: Path) -> None:
    golden.write_golden(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.safetensors" for n in NAMES}
    for name in NAMES:
        new, old = (folder / f"{name}.safetensors" for folder in (tmp_path, FOLDER))
        with safe_open(new, "np") as a, safe_open(old, "np") as b:
            assert a.metadata() == b.metadata()
            assert set(a.keys()) == set(b.keys())
            for key in a.keys():  # noqa: SIM118
                ours, theirs = a.get_tensor(key), b.get_tensor(key)
                assert ours.dtype == theirs.dtype
                computed = (
                    ".outputs." in key
                    or ".router." in key
                    or key
                    in (
                        "periods",
                        "cos",
                        "sin",
                        "rotated",
                        "weights.9.periods",
                    )
                )
                if computed:  # libraries differ in a last place of powers and cosines
                    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
                else:
                    assert ours.tobytes() == theirs.tobytes(), (name, key)


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000


@pytest.mark.parametrize(("name", "case"), CASES)
def test_sizes_are_the_contract_s(name: str, case: str) -> None:
    file = FILES[name]
    kind, parameters = contract.CLASSES[file.kind], file.parameters
    assert set(parameters) == set(kind.parameters)
    shapes = [contract.shape(entry.shape, parameters) for entry in kind.entries]
    assert [(e.shape, e.dtype.name) for e in file.entries()] == [
        (shape, entry.dtype) for shape, entry in zip(shapes, kind.entries, strict=True)
    ]
    inputs = list(file.inputs(case).values())
    count = inputs[0].shape[1 if kind is contract.CACHE_ROWS else 0]
    declared = list(kind.inputs.values()) * (len(inputs) if kind.one_input_per_layer else 1)
    assert [a.shape for a in inputs] == [contract.shape(s, parameters, count) for s in declared]
    for output, shape in kind.outputs.items():
        array = file.outputs(case)[output]
        assert array.shape == contract.shape(shape, parameters, count)
        assert array.dtype == np.float32


def args_of(file: Golden) -> ModelArgs:
    """A model of one layer with the parameters of a golden layer."""
    p = file.parameters
    names = {
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "expert_width": "intermediate_size",
        "shared_width": "intermediate_size_mlp",
        "experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
        "vocab_size": "vocab_size",
        "weight_scale": "routed_scaling_factor",
        "normalize": "norm_topk_prob",
        "qk_norm": "use_qk_norm",
        "norm_eps": "rms_norm_eps",
        "qk_norm_eps": "rms_norm_eps",  # the later one counts; see `with_norm_eps`
    }
    sizes = {
        "hidden_size": p["hidden_size"],
        "num_attention_heads": 4,
        "head_dim": 16,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "vocab_size": 96,
        "num_hidden_layers": 1,
        "bos_token_id": None,
        "eos_token_id": (0,),
    }
    scaling = None if p.get("qk_norm") is False else RopeScaling()
    given = {names[name]: value for name, value in p.items() if name in names}
    return ModelArgs(**(sizes | given), rope_scaling=scaling, quantized=True)


def published(file: Golden, kind: str, prefix: str = "weights") -> dict[str, np.ndarray]:
    """A layer's weights under their published names, as layer 0; computed ones left out."""
    entries = contract.CLASSES[kind].entries
    parameters = file.parameters | {"layer": 0}
    return {
        entry.tensor_name(parameters): array
        for entry, array in zip(entries, file.entries(prefix), strict=True)
        if entry.tensor
    }


def with_norm_eps(norm: Any, file: Golden) -> Any:
    """The models have one epsilon for all norms, the files two."""
    norm.eps = file.parameters["norm_eps"]
    return norm


def mlx_model(file: Golden) -> Model:
    model = int4_model(args_of(file))
    weights = published(file, file.kind)
    if file.kind == "MobileMoEHead":
        weights |= published(file, "MobileMoEEmbedding", "table")
    arrays = model.sanitize({name: mx.array(array) for name, array in weights.items()})
    model.load_weights(list(arrays.items()), strict=False)
    return model


def mlx_outputs(file: Golden, case: str) -> dict[str, np.ndarray]:
    """The outputs of a case, by MLX's modules in float32."""
    inputs = file.inputs(case)
    if file.kind == "MobileMoECacheRows":
        return {"stacked": np.array(mx.stack([mx.array(a) for a in inputs.values()]))}
    model = mlx_model(file)
    layer = model.layers[0]
    if file.kind == "MobileMoEEmbedding":
        tokens = mx.array(inputs["tokens"].astype(np.int32))
        return {"residual": np.array(model.model.embed_tokens(tokens))}
    residual = mx.array(inputs["residual"])[None]
    if file.kind == "MobileMoEHead":
        logits = np.array(model.logits(model.model.norm(residual)))[0]
        return {"logits": logits[-1:] if file.parameters["logits"] == "last" else logits}
    if file.kind == "MobileMoEExperts":
        y, routing = layer.feed_forward(layer.post_attention_layernorm(residual))
        np.testing.assert_array_equal(np.array(routing.experts), file.router(case)["experts"])
        np.testing.assert_allclose(
            np.array(routing.weights), file.router(case)["weights"], rtol=1e-5
        )
        return {"residual": np.array(residual + y)[0]}
    position, cache = int(inputs["position"][0]), KVCache()
    if position:
        rows = (
            inputs[n][file.parameters["layer"], :, :position] for n in ("key_cache", "value_cache")
        )
        cache.update_and_fetch(*(mx.array(array)[None] for array in rows))
    mask = create_attention_mask(residual, cache)
    norm = with_norm_eps(layer.input_layernorm, file)
    out = residual + layer.self_attn(norm(residual), mask, cache)
    end = position + residual.shape[1]
    return {
        "residual": np.array(out)[0],
        "new_keys": np.array(cache.keys)[0, :, position:end],
        "new_values": np.array(cache.values)[0, :, position:end],
    }


def flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_mlx_computes_the_same(name: str, case: str) -> None:
    file = FILES[name]
    computed = mlx_outputs(file, case)
    assert set(computed) == set(file.outputs(case))
    for output, expected in file.outputs(case).items():
        error = TensorError.between(flat(computed[output]), flat(expected))
        assert error.max < FLOAT32_LIMIT, output


@pytest.mark.parametrize("name", ["attention", "attention-plain"])
def test_mlx_rotates_and_scales_as_the_files_say(name: str) -> None:
    attention = mlx_model(FILES[name]).layers[0].self_attn
    np.testing.assert_allclose(np.array(attention._periods), FILES[name].entries()[9], rtol=1e-6)
    assert attention.head_dim**-0.5 == FILES[name].parameters["score_scale"]


@pytest.mark.parametrize(
    ("name", "case"), [(n, c) for n, c in CASES if FILES[n].kind == "MobileMoEExperts"]
)
def test_pytorch_computes_the_same_experts(name: str, case: str) -> None:
    file = FILES[name]
    layer = torch_model.DecoderLayer(args_of(file))
    load_into(layer, file)
    residual = torch.from_numpy(file.inputs(case)["residual"])[None]
    with torch.no_grad():
        y, routing = layer.feed_forward(layer.post_attention_layernorm(residual))
    np.testing.assert_array_equal(routing.experts.numpy(), file.router(case)["experts"])
    np.testing.assert_allclose(routing.biased.numpy(), file.router(case)["scores"], atol=1e-6)
    out = (residual + y)[0].numpy()
    assert TensorError.between(out, file.outputs(case)["residual"]).max < FLOAT32_LIMIT


@pytest.mark.parametrize("name", ["attention", "attention-plain"])
@pytest.mark.parametrize("case", ["first", "prompt"])
def test_pytorch_computes_the_same_attention(name: str, case: str) -> None:
    """The cases without cached rows, which the reference does not have."""
    file = FILES[name]
    layer = torch_model.DecoderLayer(args_of(file))
    load_into(layer, file)
    residual = torch.from_numpy(file.inputs(case)["residual"])[None]
    norm = with_norm_eps(layer.input_layernorm, file)
    with torch.no_grad():
        out = (residual + layer.self_attn(norm(residual)))[0].numpy()
    assert TensorError.between(out, file.outputs(case)["residual"]).max < FLOAT32_LIMIT


def load_into(layer: torch_model.DecoderLayer, file: Golden) -> None:
    tensors = {n: torch.from_numpy(a.copy()) for n, a in published(file, file.kind).items()}
    plain = torch_checkpoint.dequantize(tensors)
    prefix = "model.layers.0."
    state = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
    result = layer.load_state_dict(state, strict=False)
    assert not result.unexpected_keys


def test_unpack_is_integer_arithmetic() -> None:
    """Byte by byte in Python's integers."""
    tensors = FILES["unpack"].tensors
    scales, values = tensors["scales"], tensors["values"]
    seen = set()
    for row, line in enumerate(tensors["codes"].tolist()):
        for index, byte in enumerate(line):
            seen.add(byte)
            for column, nibble in ((2 * index, byte % 16), (2 * index + 1, byte // 16)):
                code = nibble - 16 if nibble >= 8 else nibble
                assert values[row, column] == np.float32(code * float(scales[row, column // 32]))
    assert seen == set(range(256))


def test_the_page_s_example_is_in_the_file() -> None:
    tensors = FILES["unpack"].tensors
    assert tensors["codes"][2, 35] == 0xA3
    assert tensors["scales"][2, 2].view(np.uint16) == 0x2C4D
    np.testing.assert_allclose(tensors["values"][2, 70:72], [0.20160, -0.40320], atol=5e-6)


def test_rotations_are_those_of_the_published_models() -> None:
    tensors = FILES["rotate"].tensors
    frequencies = torch_model.rope_frequencies(64, 500000.0, RopeScaling())
    np.testing.assert_allclose(tensors["periods"], 1 / np.array(frequencies), rtol=1e-6)
    for row, position in enumerate(tensors["positions"].tolist()):
        for pair, period in enumerate(tensors["periods"].tolist()):
            angle = position / period
            cos, sin = math.cos(angle), math.sin(angle)
            assert abs(tensors["cos"][row, pair] - cos) < 1e-7
            assert abs(tensors["sin"][row, pair] - sin) < 1e-7
            turned = complex(*tensors["x"][row, 0, 2 * pair : 2 * pair + 2]) * complex(cos, sin)
            actual = tensors["rotated"][row, 0, 2 * pair : 2 * pair + 2]
            np.testing.assert_allclose(actual, [turned.real, turned.imag], atol=1e-6)


def test_cases_are_what_they_say() -> None:
    experts = FILES["experts"]
    chosen = {case: experts.router(case)["experts"].tolist() for case in experts.cases}
    scores = {case: experts.router(case)["scores"] for case in experts.cases}
    low, high = golden.TWINS
    for case, rows in chosen.items():
        assert all(golden.ALWAYS in row and golden.NEVER not in row for row in rows)
        assert (scores[case][:, low] == scores[case][:, high]).all()
    assert all(low in row and high not in row for row in chosen["tie"])
    assert all(row[1:] == [low, high] for row in chosen["tie-both"])
    assert len(chosen["decode"]) == 1
    assert len({tuple(row) for row in chosen["block"]}) == len(chosen["block"]) == 5
    for rows, case_scores in ((chosen[c], scores[c]) for c in experts.cases):
        for row, token in zip(rows, case_scores, strict=True):
            ranked = np.sort(token)[::-1]
            gaps = ranked[: len(row)] - ranked[1 : len(row) + 1]
            assert ((gaps >= golden.MARGIN) | (gaps == 0)).all()
    attention = FILES["attention"]
    context = attention.parameters["context"]
    spans = {
        case: (int(x["position"][0]), len(x["residual"]))
        for case, x in ((c, attention.inputs(c)) for c in attention.cases)
    }
    assert spans["decode"][0] > 0
    assert spans["decode"][1] == 1
    assert all(sum(spans[case]) == context for case in ("end", "end-block"))
    assert attention.parameters["heads"] > attention.parameters["kv_heads"] > 1
    unscaled = 500000.0 ** (np.arange(0, 16, 2) / 16)
    ratio = attention.entries()[9] / unscaled
    assert set(np.round(ratio).tolist()) == {1, 16}  # llama3 scaling keeps some and stretches some


# Mistakes of an implementation, each with the files that must notice it.
def high_nibble_first(codes: np.ndarray) -> np.ndarray:
    return _unpack((codes >> 4) | (codes << 4))


def offset_binary(codes: np.ndarray) -> np.ndarray:
    return _unpack(codes ^ 0x88)


def halves_are_pairs(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    mixed = np.stack([x[..., :half], x[..., half:]], axis=-1).reshape(x.shape)
    turned = _rotate(mixed, angles)
    return np.concatenate([turned[..., 0::2], turned[..., 1::2]], axis=-1)


def turned_the_other_way(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return _rotate(x, -angles)


def scale_of_the_other_axis(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return _dequantize(codes, np.roll(scales, 1, axis=0))


_unpack, _rotate, _dequantize = reference.unpack, reference.rotate, reference.dequantize

MISTAKES: dict[str, tuple[str, Callable[..., Any], set[str]]] = {
    "high nibble first": ("unpack", high_nibble_first, {"embedding", "attention", "experts"}),
    "offset binary": ("unpack", offset_binary, {"embedding", "attention", "experts", "head-all"}),
    "scales of another row": ("dequantize", scale_of_the_other_axis, {"attention", "experts"}),
    "pairs of halves": ("rotate", halves_are_pairs, {"attention", "attention-plain"}),
    "turned back": ("rotate", turned_the_other_way, {"attention", "attention-plain"}),
}

# The same by another parameter than the file's.
WRONG_PARAMETERS: dict[str, tuple[str, Any, str]] = {
    "another layer's cache": ("layer", 0, "attention"),
    "no q/k norm": ("qk_norm", False, "attention"),
    "q/k norm": ("qk_norm", True, "attention-plain"),
    "another score scale": ("score_scale", 0.125, "attention"),
    "weights not normalised": ("normalize", False, "experts"),
    "weights normalised": ("normalize", True, "experts-plain"),
    "weights not scaled": ("weight_scale", 1.0, "experts"),
    "fewer experts": ("experts_per_token", 2, "experts"),
    "no epsilon, attention": ("norm_eps", 0.0, "attention"),
    "no epsilon, experts": ("norm_eps", 0.0, "experts"),
    "no epsilon, head": ("norm_eps", 0.0, "head-all"),
    "no epsilon, q/k norm": ("qk_norm_eps", 0.0, "attention"),
    "the other epsilon": ("qk_norm_eps", golden.NORM_EPS, "attention"),
}


def run(file: Golden, case: str, **changes: Any) -> dict[str, np.ndarray]:
    """The reference's outputs."""
    parameters = file.parameters | changes
    raw = [np.frombuffer(a.tobytes(), np.uint8) for a in file.entries()]
    table = [np.frombuffer(a.tobytes(), np.uint8) for a in file.entries("table")]
    arrays = list(file.inputs(case).values())
    kind = contract.CLASSES[file.kind]
    results: Any
    if kind is contract.EMBEDDING:
        results = (reference.embedding(parameters, raw, *arrays),)
    elif kind is contract.ATTENTION:
        results = reference.attention(parameters, raw, *arrays)
    elif kind is contract.EXPERTS:
        results = (reference.experts(parameters, raw, *arrays).residual,)
    elif kind is contract.CACHE_ROWS:
        results = (reference.cache_rows(arrays),)
    else:
        results = (reference.head(parameters, raw, table, *arrays),)
    return dict(zip(kind.outputs, results, strict=True))


def errors(file: Golden, **changes: Any) -> Iterator[float]:
    """The mean error of every output of every case."""
    for case in file.cases:
        for output, computed in run(file, case, **changes).items():
            yield TensorError.between(flat(computed), flat(file.outputs(case)[output])).mean


ENTRY_NAMES = [entry.name for entry in contract.EXPERTS.entries]

# The limit for half precision: what is below it would pass for rounding.
HALF_LIMIT = 2.4e-3


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, files = MISTAKES[mistake]
    monkeypatch.setattr(reference, name, wrong)
    for file in files:
        assert max(errors(FILES[file])) > 10 * HALF_LIMIT, file


@pytest.mark.parametrize("mistake", WRONG_PARAMETERS)
def test_a_wrong_parameter_is_noticed(mistake: str) -> None:
    name, value, file = WRONG_PARAMETERS[mistake]
    assert max(errors(FILES[file], **{name: value})) > 10 * HALF_LIMIT


def subnormals_are_zero(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    smallest = np.finfo(np.float16).smallest_normal
    return _dequantize(codes, np.where(np.abs(scales) < smallest, np.float16(0), scales))


@pytest.mark.parametrize("name", ["embedding", "attention", "attention-plain", "head-all"])
def test_flushed_scales_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "dequantize", subnormals_are_zero)
    file = FILES[name]
    worst = max(
        TensorError.between(flat(computed), flat(file.outputs(case)[output])).max
        for case in file.cases
        for output, computed in run(file, case).items()
    )
    assert worst > 10 * FLOAT32_LIMIT


def test_ties_to_the_higher_index_are_noticed() -> None:
    """The same layer with its experts in reverse: the other one of two twins comes first."""
    file = FILES["experts"]
    per_expert = {
        "router",
        "expert_bias",
        *(e for e in ENTRY_NAMES if e.startswith(("gate_up", "down"))),
    }
    tensors = {
        name: array[::-1].copy() if name.rpartition(".")[2] in per_expert else array
        for name, array in file.tensors.items()
    }
    mirrored = file._replace(tensors=tensors)
    for case in file.cases:
        expected = file.outputs(case)["residual"]
        error = TensorError.between(run(mirrored, case)["residual"], expected)
        if case == "tie":
            assert error.mean > 10 * HALF_LIMIT
        elif case == "decode":  # no twin selected
            assert error.max < 1e-6


def test_reading_rows_beyond_the_position_is_noticed() -> None:
    """The leftovers in the caches are no zeros: one row more or fewer changes the result."""
    file = FILES["attention"]
    inputs = file.inputs("decode")
    raw = [np.frombuffer(a.tobytes(), np.uint8) for a in file.entries()]
    for shift in (-1, 1):
        changed = inputs | {"position": inputs["position"] + shift}
        out = reference.attention(file.parameters, raw, *changed.values())[0]
        expected = file.outputs("decode")["residual"]
        assert TensorError.between(out, expected).mean > 10 * HALF_LIMIT


def in_half(file: Golden, case: str) -> np.ndarray:
    """The experts of a case as a GPU would compute them: half storage, float32 sums and router."""

    def half(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(np.float32)

    def silu(x: np.ndarray) -> np.ndarray:
        return half(x / (1 + np.exp(-x)))

    p, w = file.parameters, file.entries()
    weights = {
        e.name.removesuffix("_codes"): half(_dequantize(w[i], w[i + 1]).astype(np.float32))
        for i, e in enumerate(contract.EXPERTS.entries)
        if e.name.endswith("_codes")
    }
    residual = half(file.inputs(case)["residual"])
    x = residual / np.sqrt((residual**2).mean(-1, keepdims=True) + np.float32(p["norm_eps"])) * w[0]
    scores = 1 / (1 + np.exp(-(x @ w[1].T)))
    selected = np.argsort(-(scores + w[2]), axis=-1, kind="stable")[:, : p["experts_per_token"]]
    np.testing.assert_array_equal(selected, file.router(case)["experts"])
    shares = np.take_along_axis(scores, selected, -1)
    if p["normalize"]:
        shares = shares / shares.sum(-1, keepdims=True)
    shares, x, total = half(shares * p["weight_scale"]), half(x), np.zeros_like(residual)
    for token, slots in enumerate(selected):
        for slot, expert in enumerate(slots):
            gate, up = np.split(half(x[token] @ weights["gate_up"][expert]), 2)
            out = half(half(silu(gate) * up) @ weights["down"][expert])
            total[token] += out * shares[token, slot]
    gate, up = (half(x @ weights[f"shared_{name}"].T) for name in ("gate", "up"))
    total += half(half(silu(gate) * up) @ weights["shared_down"].T)
    return half(residual + half(total))


@pytest.mark.parametrize(
    ("name", "case"), [(n, c) for n, c in CASES if FILES[n].kind == "MobileMoEExperts"]
)
def test_the_limit_for_half_precision_can_be_met(name: str, case: str) -> None:
    """With room: 5e-4 measured; and float32's limit cannot, so that each is of its path."""
    error = TensorError.between(in_half(FILES[name], case), FILES[name].outputs(case)["residual"])
    assert error.mean < HALF_LIMIT / 3
    assert error.max > FLOAT32_LIMIT
