"""The custom-layer model as it is written: every byte the checkpoint's, and the contract's page."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import coremltools as ct
import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoint_files import read
from small_model import small_args

from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.compare.torch_model import rope_frequencies
from mobilemoe_mlx.export.coreml.custom import contract as contract
from mobilemoe_mlx.export.coreml.custom.layers import (
    build_custom_layer_model,
    write_custom_layer_model,
)
from mobilemoe_mlx.export.coreml.metadata import Credits
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.int4_source import open_source

CONTEXT, BLOCK = 48, 16
PAGE = Path(__file__).parents[4] / "coreml" / "README.md"

# className -> layers of it in a model of 2 decoder layers
CLASSES = {
    "MobileMoEEmbedding": 1,
    "MobileMoEAttention": 2,
    "MobileMoEExperts": 2,
    "MobileMoECacheRows": 2,
    "MobileMoEHead": 1,
}


def build(
    folder: Path, tmp_path: Path, logits: Literal["last", "all"] = "last", **options: Any
) -> Any:
    return build_custom_layer_model(
        open_source(folder),
        context=CONTEXT,
        prefill_block=BLOCK,
        logits=logits,
        side_folder=tmp_path,
        **options,
    )


def custom_layers(spec: Any, name: str) -> list[Any]:
    return [layer for layer in spec.neuralNetwork.layers if layer.custom.className == name]


def parameters(layer: Any) -> dict[str, Any]:
    values = layer.custom.parameters.items()
    return {name: getattr(value, value.WhichOneof("value")) for name, value in values}


def entries(layer: Any) -> list[bytes]:
    """The bytes of each entry that lies in the model."""
    return [
        w.rawValue or w.float16Value or np.array(w.floatValue, "<f4").tobytes()
        for w in layer.custom.weights
    ]


# The published tensors of each class, written down once more, in the order of its weights.
def attention_tensors(path: str) -> list[str]:
    linears = [f"{path}.self_attn.{p}_proj" for p in "qkvo"]
    packed = [f"{m}.{part}" for m in linears for part in ("qweight", "weight_scale")]
    return [f"{path}.input_layernorm.weight", *packed]


def experts_tensors(path: str) -> list[str]:
    moe = f"{path}.feed_forward"
    routed = ("gate_up_qweight", "gate_up_scale", "down_qweight", "down_scale")
    shared = [
        f"{moe}.shared_expert.{m}_proj.{part}"
        for m in ("gate", "up", "down")
        for part in ("qweight", "weight_scale")
    ]
    return [
        f"{path}.post_attention_layernorm.weight",
        f"{moe}.router.weight",
        f"{moe}.expert_bias",
        *(f"{moe}.experts.{name}" for name in routed),
        *shared,
    ]


def stored_bytes(tensor: torch.Tensor) -> bytes:
    if tensor.dtype == torch.bfloat16:  # the upper half of a float32
        return (tensor.view(torch.int16).to(torch.int32) << 16).numpy().tobytes()
    return tensor.view(torch.uint8).numpy().tobytes()


def expected_entries(folder: Path) -> list[tuple[str, int, list[bytes]]]:
    """(class, which one, the bytes of its entries), read with the format's own library."""
    tensors = read(folder)
    args = open_checkpoint(folder).args
    frequencies = rope_frequencies(args.head_dim, args.rope_theta, args.rope_scaling)
    periods = (1 / np.array(frequencies)).astype(np.float32).tobytes()
    table = ["model.embed_tokens.qweight", "model.embed_tokens.weight_scale"]
    found = [
        ("MobileMoEEmbedding", 0, [stored_bytes(tensors.pop(name)) for name in table]),
        ("MobileMoEHead", 0, [stored_bytes(tensors.pop("model.norm.weight"))]),
        ("MobileMoECacheRows", 0, []),
        ("MobileMoECacheRows", 1, []),
    ]
    for index in range(args.num_hidden_layers):
        path = f"model.layers.{index}"
        attention = [stored_bytes(tensors.pop(name)) for name in attention_tensors(path)]
        found.append(("MobileMoEAttention", index, [*attention, periods]))
        experts = [stored_bytes(tensors.pop(name)) for name in experts_tensors(path)]
        found.append(("MobileMoEExperts", index, experts))
    assert not tensors  # each is somewhere, and `pop` finds none twice
    return found


def test_every_entry_has_the_checkpoint_s_bytes(int4_folder: Path, tmp_path: Path) -> None:
    spec = build(int4_folder, tmp_path)
    assert not list(tmp_path.iterdir())
    for name, index, expected in expected_entries(int4_folder):
        assert entries(custom_layers(spec, name)[index]) == expected, (name, index)


def test_a_side_file_has_the_same_bytes_page_by_page(int4_folder: Path, tmp_path: Path) -> None:
    spec = build(int4_folder, tmp_path, max_inline_bytes=10_000)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    gaps = bytearray(content)
    for name, index, expected in expected_entries(int4_folder):
        layer = custom_layers(spec, name)[index]
        assert not layer.custom.weights
        values = parameters(layer)
        names = [n.removesuffix("_offset") for n in values if n.endswith("_offset")]
        assert len(names) == len(expected)
        if not expected:
            continue
        assert values["weights_file"] == path.name == "weights.bin"
        assert values["weights_bytes"] == len(content)
        assert values["weights_sha256"] == hashlib.sha256(content).hexdigest()
        for entry, wanted in zip(contract.CLASSES[name].entries, expected, strict=True):
            begin = values[f"{entry.name}_offset"]
            end = begin + values[f"{entry.name}_bytes"]
            assert begin % 16384 == 0
            assert content[begin:end] == wanted
            assert any(gaps[begin:end]) or not any(wanted)  # no other entry lies there
            gaps[begin:end] = bytes(end - begin)
    assert not any(gaps)
    assert len(content) % 16384 == 0


def test_weights_at_the_limit_stay_inside(int4_folder: Path, tmp_path: Path) -> None:
    size = sum(len(e) for *_, expected in expected_entries(int4_folder) for e in expected)
    inside = build(int4_folder, tmp_path, max_inline_bytes=size)
    assert custom_layers(inside, "MobileMoEHead")[0].custom.weights
    assert not list(tmp_path.iterdir())
    build(int4_folder, tmp_path, max_inline_bytes=size - 1)
    assert list(tmp_path.iterdir())


def test_the_side_file_is_written_with_one_tensor_in_memory(tmp_path: Path) -> None:
    args = small_args(
        hidden_size=256,
        num_hidden_layers=6,
        intermediate_size=128,
        num_local_experts=16,
        vocab_size=1024,
    )
    write_random_checkpoint(tmp_path / "checkpoint", args, quantized=True)
    checkpoint = open_source(tmp_path / "checkpoint")
    sizes = [tensor.nbytes for tensor in checkpoint.tensors.values()]
    mx.reset_peak_memory()
    tracemalloc.start()
    build_custom_layer_model(
        checkpoint,
        context=32,
        prefill_block=8,
        logits="last",
        side_folder=tmp_path,
        max_inline_bytes=0,
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The array, a contiguous copy at most, and the program's own text.
    assert peak < 3 * max(sizes) + 1_000_000 < sum(sizes) / 2
    assert mx.get_peak_memory() < 3 * max(sizes) + 1_000_000


def test_the_tied_table_is_stored_once_and_named_by_its_content(
    int4_folder: Path, tmp_path: Path
) -> None:
    spec = build(int4_folder, tmp_path)
    (embedding,) = custom_layers(spec, "MobileMoEEmbedding")
    (head,) = custom_layers(spec, "MobileMoEHead")
    key = hashlib.sha256(b"".join(entries(embedding))).hexdigest()
    assert parameters(embedding)["table"] == parameters(head)["table"] == key
    table = entries(embedding)[0]
    assert spec.SerializeToString().count(table[:64]) == 1


def test_parameters_are_the_configuration_s(int4_folder: Path, tmp_path: Path) -> None:
    spec = build(int4_folder, tmp_path, logits="all")
    common = {"version": 1, "hidden_size": 64, "group_size": 32, "norm_eps": 1e-5}
    for index, layer in enumerate(custom_layers(spec, "MobileMoEAttention")):
        assert parameters(layer) == common | {
            "layer": index,
            "layers": 2,
            "heads": 6,
            "kv_heads": 2,
            "head_dim": 16,
            "context": CONTEXT,
            "qk_norm": True,
            "qk_norm_eps": 1e-5,
            "score_scale": 0.25,
        }
    for index, layer in enumerate(custom_layers(spec, "MobileMoEExperts")):
        assert parameters(layer) == common | {
            "layer": index,
            "expert_width": 32,
            "shared_width": 160,
            "experts": 7,
            "experts_per_token": 2,
            "normalize": True,
            "normalize_eps": 1e-20,
            "weight_scale": 2.5,
        }
    head = parameters(custom_layers(spec, "MobileMoEHead")[0])
    assert head.pop("table")
    assert head == common | {"vocab_size": 480, "logits": "all"}
    rows = parameters(custom_layers(spec, "MobileMoECacheRows")[0])
    assert rows == {"version": 1, "layers": 2, "kv_heads": 2, "head_dim": 16}


def test_inputs_and_outputs(int4_folder: Path, tmp_path: Path) -> None:
    def described(features: Any) -> dict[str, Any]:
        out = {}
        for feature in features:
            array = feature.type.multiArrayType
            ranges = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
            out[feature.name] = (array.dataType, tuple(array.shape), ranges)
        return out

    types = ct.proto.FeatureTypes_pb2.ArrayFeatureType
    tokens = (1, BLOCK)
    rows = (types.FLOAT32, (2, 2, 1, 16), [(2, 2), (2, 2), tokens, (16, 16)])
    cache = (types.FLOAT32, (2, 2, CONTEXT, 16), [])
    logits = {
        "last": (types.FLOAT32, (1, 480), []),
        "all": (types.FLOAT32, (1, 480), [tokens, (480, 480)]),
    }
    for which in ("last", "all"):
        description = build(int4_folder, tmp_path, logits=which).description
        assert described(description.input) == {
            "tokens": (types.INT32, (1,), [tokens]),
            "position": (types.INT32, (1,), []),
            "key_cache": cache,
            "value_cache": cache,
        }
        assert described(description.output) == {
            "logits": logits[which],
            "new_keys": rows,
            "new_values": rows,
        }


@pytest.mark.parametrize("beside", [False, True])
def test_coremltools_reads_the_package_back(
    int4_folder: Path, tmp_path: Path, beside: bool
) -> None:
    path = tmp_path / "X.mlpackage"
    source = open_source(int4_folder)
    options = ExportOptions("custom-layer", CONTEXT, BLOCK, weights_beside=beside)
    credit = Credits("Ada", "Some licence")
    written = write_custom_layer_model(source, options, credit, path, tmp_path)
    (tmp_path / "again").mkdir()
    assert {p.name for p in tmp_path.iterdir()} - {"weights.bin", "again"} == {path.name}
    spec = ct.utils.load_spec(str(path))
    assert spec == written
    assert spec.description.metadata.author == "Ada"
    assert spec.description.metadata.license == "Some licence"
    spec.description.ClearField("metadata")
    for feature in (*spec.description.input, *spec.description.output):
        feature.ClearField("shortDescription")
    limit = 0 if beside else 1_000_000
    built = build(int4_folder, tmp_path / "again", max_inline_bytes=limit)
    assert spec == built
    model = ct.models.MLModel(str(path), skip_model_load=True)
    assert model.get_spec() == written
    layers = ct.models.utils._get_custom_layers(built)
    assert len(layers) == len(built.neuralNetwork.layers) == sum(CLASSES.values())
    names = [layer.custom.className for layer in layers]
    assert {name: names.count(name) for name in CLASSES} == CLASSES


def test_layers_cost_little_besides_their_weights(int4_folder: Path, tmp_path: Path) -> None:
    """2 kB a layer: at most 0.01 % of a full-size model, whose layers have 35 MB or more."""
    spec = build(int4_folder, tmp_path)
    weights = sum(len(e) for layer in spec.neuralNetwork.layers for e in entries(layer))
    assert spec.ByteSize() - weights < 2_000 * len(spec.neuralNetwork.layers)


def test_every_array_is_made_before_it_is_used(int4_folder: Path, tmp_path: Path) -> None:
    spec = build(int4_folder, tmp_path)
    made = {feature.name for feature in spec.description.input}
    for layer in spec.neuralNetwork.layers:
        assert set(layer.input) <= made
        assert not set(layer.output) & made
        made |= set(layer.output)
    assert {feature.name for feature in spec.description.output} <= made


def test_other_configurations_reach_the_layers(tmp_path: Path) -> None:
    args = small_args(
        use_qk_norm=False, norm_topk_prob=False, routed_scaling_factor=1.5, rope_scaling=None
    )
    write_random_checkpoint(tmp_path / "checkpoint", args, quantized=True)
    spec = build(tmp_path / "checkpoint", tmp_path)
    attention = custom_layers(spec, "MobileMoEAttention")[0]
    assert parameters(attention)["qk_norm"] is False
    expected = args.rope_theta ** (np.arange(0, 32, 2) / 32)
    np.testing.assert_array_equal(
        np.float32(attention.custom.weights[9].floatValue), np.float32(expected)
    )
    experts = parameters(custom_layers(spec, "MobileMoEExperts")[0])
    assert experts["normalize"] is False
    assert experts["weight_scale"] == 1.5


def sections() -> dict[str, str]:
    """Class name -> its part of the page."""
    parts = re.split(r"^### 5\.\d+ (\w+)$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], (part.split("\n## ")[0] for part in parts[2::2]), strict=True))


def rows(text: str, columns: int) -> list[list[str]]:
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    return [row for row in cells if len(row) == columns]


def test_the_page_has_the_contract_s_tables() -> None:
    assert f"the contract, version {contract.VERSION}" in PAGE.read_text(encoding="utf-8")
    pages = sections()
    assert set(pages) == set(contract.CLASSES)
    for name, kind in contract.CLASSES.items():
        text = pages[name]
        three = rows(text, 3)
        page_parameters = [
            (n, t) for n, t, _ in three if t in ("int", "long", "double", "bool", "string")
        ]
        assert page_parameters == list(kind.parameters.items()), name
        weights = [row for row in rows(text, 5) if row[0].isdigit()]
        assert weights == [
            [str(i), e.name, e.dtype, f"[{', '.join(e.shape)}]", e.tensor]
            for i, e in enumerate(kind.entries)
        ], name
        for which, arrays in (("input", kind.inputs), ("output", kind.outputs)):
            stated = [(n, shape) for w, n, shape in three if w == which]
            assert stated == [(n, f"[{', '.join(s)}]") for n, s in arrays.items()], name


def test_the_page_has_the_side_file_s_parameters() -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index("## 7. ") : text.index("## 8. ")]
    stated = {n: t for n, t, _ in rows(section, 3) if t in ("long", "string")}
    assert stated == contract.SIDE_FILE_PARAMETERS | {"ENTRY_offset": "long", "ENTRY_bytes": "long"}
    assert "16,384" in section
    assert contract.SIDE_FILE_ALIGNMENT == 16384


def test_a_shape_that_does_not_come_out_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole number"):
        contract.shape(("hidden_size / 2",), {"hidden_size": 3})


def test_a_tensor_of_another_shape_is_refused(int4_folder: Path, tmp_path: Path) -> None:
    source = open_source(int4_folder)
    name = "model.layers.1.self_attn.o_proj.qweight"
    tensor = source.tensors[name]
    wrong = tensor._replace(shape=(tensor.shape[0], tensor.shape[1] // 2))
    source = dataclasses.replace(source, tensors=source.tensors | {name: wrong})
    with pytest.raises(ValueError, match="layers_1_attention: o_codes"):
        build_custom_layer_model(
            source, context=CONTEXT, prefill_block=BLOCK, logits="last", side_folder=tmp_path
        )
