"""What exports compute in ONNX Runtime: MLX's logits, whatever form, shape and calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoint_files import Tensors
from small_model import small_args
from varied_model import write_varied

from mobilemoe_mlx import int4
from mobilemoe_mlx.checkpoint.check import open_checkpoint
from mobilemoe_mlx.checkpoint.load_save import load_model
from mobilemoe_mlx.config import ModelArgs, RopeScaling
from mobilemoe_mlx.engines import open_engine
from mobilemoe_mlx.engines.mlx import MLXEngine
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.experts import ExpertLinear
from mobilemoe_mlx.export.onnx.folder import export_onnx
from mobilemoe_mlx.export.onnx.options import ExportOptions
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.numerics.tolerance import limit
from mobilemoe_mlx.numerics.values import trace_mlx

# Both compute in float32: the promise for any two programs that do is 1e-4 (numerics/tolerance.py).
FLOAT32 = 1e-4
FORMS = ("fused", "portable")

pytestmark = pytest.mark.usefixtures("kernel_is_built")


def tokens_of(args: ModelArgs, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(args.vocab_size, size=count).tolist()


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest logit."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def exact(form: str) -> dict[str, Any]:
    """Options by which a form's products are float32."""
    return {"accuracy_level": 1} if form == "fused" else {}


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Model:
    return load_model(checkpoint, mx.float32)


def mlx_logits(model: Model, tokens: list[int]) -> np.ndarray:
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


@pytest.mark.parametrize("form", FORMS)
def test_logits_in_one_call_in_blocks_and_to_the_end_of_the_context(
    exported: Any, reference: Model, varied_args: ModelArgs, form: str
) -> None:
    engine = open_engine(exported(form, **exact(form)), "onnx")
    tokens = tokens_of(varied_args, 192)
    wanted = mlx_logits(reference, tokens)
    found = engine.session().feed(tokens, all_logits=True)
    assert (found.dtype, found.shape) == (np.float32, (192, 480))
    assert error(found, wanted) < FLOAT32
    # The last call's, as the saved graph gives them, in calls of many lengths, and to the end.
    session, start = engine.session(), 0
    for length in (1, 1, 7, 2, 40, 1, 64, 5, 1, 70):
        last = session.feed(tokens[start : start + length])
        start += length
        assert error(last, wanted[start - 1 : start]) < FLOAT32, start
    assert (start, session.position) == (192, 192)
    with pytest.raises(UserError, match="193 tokens do not fit into a context of 192"):
        session.feed([3])
    # All experts of all layers had a part in it.
    for layer in trace_mlx(reference, tokens).layers:
        assert len(np.unique(layer.experts)) == varied_args.num_local_experts


@pytest.mark.parametrize("form", FORMS)
def test_float16_activations_keep_the_limit_of_their_roundings(
    exported: Any, reference: Model, varied_args: ModelArgs, form: str
) -> None:
    tokens = tokens_of(varied_args, 64)
    wanted = mlx_logits(reference, tokens)
    engine = open_engine(exported(form, activations="float16", **exact(form)), "onnx")
    found = engine.session().feed(tokens, all_logits=True)
    mean = np.abs(found - wanted).mean() / np.sqrt(np.square(wanted).mean())
    assert 1e-5 < mean < limit("declared", varied_args.num_hidden_layers).value


@pytest.mark.parametrize("form", FORMS)
def test_int8_activations_err_by_little_for_most_tokens(
    exported: Any, reference: Model, varied_args: ModelArgs, form: str
) -> None:
    """Near ties in the routing fall differently, so of a median token (docs/onnx.md)."""
    tokens = tokens_of(varied_args, 64)
    wanted = mlx_logits(reference, tokens)
    engine = open_engine(exported(form, accuracy_level=4), "onnx")
    found = engine.session().feed(tokens, all_logits=True)
    errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert 1e-4 < np.median(errors) < 0.05


def requantized(folder: Path) -> Model:
    """The MLX model with experts rounded a second time, along *in*, by MLX and numpy alone."""
    model, tensors = load_model(folder, mx.float32), open_checkpoint(folder).tensors
    for index, layer in enumerate(model.layers):
        experts = layer.feed_forward.experts
        for stem in ("gate_up", "down"):
            at = f"model.layers.{index}.feed_forward.experts.{stem}"
            codes, scale = (tensors[f"{at}_{kind}"].read() for kind in ("qweight", "scale"))
            values = np.array(int4.dequantize(int4.unpack(codes), scale))  # [E, in, out]
            groups = np.swapaxes(values, 1, 2).reshape(*values.shape[::2], -1, 32)
            steps = np.maximum(groups.max(-1) / 7, groups.min(-1) / -8).astype(np.float16)
            steps = steps.astype(np.float32)[..., None]
            rounded = np.clip(np.round(groups / np.where(steps > 0, steps, 1)), -8, 7) * steps
            rounded = np.swapaxes(rounded.reshape(*values.shape[::2], -1), 1, 2)
            linear = ExpertLinear(*values.shape)
            linear.weight = mx.array(rounded)
            setattr(experts, f"{stem}_proj", linear)
    return model


def test_qmoe_computes_with_its_own_rounded_weights(
    exported: Any, checkpoint: Path, reference: Model, varied_args: ModelArgs
) -> None:
    tokens = tokens_of(varied_args, 64)
    engine = open_engine(exported("qmoe"), "onnx")
    found = engine.session().feed(tokens, all_logits=True)
    assert error(found, mlx_logits(requantized(checkpoint), tokens)) < FLOAT32
    assert error(found, mlx_logits(reference, tokens)) > 1e-3


@pytest.mark.parametrize("form", (*FORMS, "qmoe"))
def test_experts_that_score_alike(tmp_path: Path, form: str) -> None:
    """The lower index is selected, as everywhere else."""

    def alike(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if name.endswith("router.weight"):
                tensors[name] = tensor[:1].repeat(len(tensor), 1)
            if name.endswith("expert_bias"):
                tensors[name] = torch.tensor([0.0, 0.25] * 6, dtype=tensor.dtype)

    folder = write_varied(tmp_path / "it", small_args(), edit=alike)
    options = ExportOptions(form=form, context=64, requantize=form == "qmoe", **exact(form))
    engine = open_engine(export_onnx(folder, tmp_path / "out", options).folder, "onnx")
    tokens = tokens_of(engine.args, 20)
    model = requantized(folder) if form == "qmoe" else load_model(folder, mx.float32)
    assert {*trace_mlx(model, tokens).layers[0].experts[:, :4].flatten()} == {1, 3, 5, 7}
    found = engine.session().feed(tokens, all_logits=True)
    assert error(found, mlx_logits(model, tokens)) < FLOAT32


NARROW = {
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 2,
    "use_qk_norm": False,
    "norm_topk_prob": False,
    "routed_scaling_factor": 0.7,
}
WIDE = {
    "num_hidden_layers": 1,
    "hidden_size": 96,
    "head_dim": 80,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "intermediate_size_mlp": 32,
    "vocab_size": 41,
    "rope_scaling": None,
    "rope_theta": 10.0,
    "rms_norm_eps": 0.1,
}
PADDED = {
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "num_local_experts": 5,
    "num_experts_per_tok": 5,
    "rope_theta": 30.0,
    "rope_scaling": RopeScaling("llama3", 4.0, 64, 1.0, 4.0),
}
ONE_EXPERT = {"num_hidden_layers": 2, "num_local_experts": 1, "num_experts_per_tok": 1}


@pytest.mark.parametrize("shape", [NARROW, WIDE, PADDED, ONE_EXPERT])
@pytest.mark.parametrize("form", (*FORMS, "qmoe"))
def test_odd_shapes(tmp_path: Path, form: str, shape: dict[str, Any]) -> None:
    folder = write_varied(tmp_path / "it", small_args(**shape))
    options = ExportOptions(form=form, context=64, requantize=form == "qmoe", **exact(form))
    engine = open_engine(export_onnx(folder, tmp_path / "out", options).folder, "onnx")
    tokens = tokens_of(engine.args, 40)
    model = requantized(folder) if form == "qmoe" else load_model(folder, mx.float32)
    wanted = MLXEngine(model).session().feed(tokens, all_logits=True)
    session = engine.session()
    assert error(session.feed(tokens[:39]), wanted[38:39]) < FLOAT32
    assert error(session.feed(tokens[39:]), wanted[39:]) < FLOAT32
