"""What is in an ONNX export: bit for bit the checkpoint, its size, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mobilemoe_mlx import files, onnx_operators
from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.cli.main import main
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.engines import open_engine
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.export.onnx import folder as folder_module
from mobilemoe_mlx.export.onnx.folder import export_onnx
from mobilemoe_mlx.export.onnx.options import ExportOptions
from mobilemoe_mlx.generate import open_for_prompts

pytestmark = pytest.mark.usefixtures("kernel_is_built")

PORTABLE = ExportOptions(form="portable", context=64)


def codes(array: np.ndarray) -> np.ndarray:
    """Two's-complement codes of two a byte, low nibble first."""
    nibbles = np.stack([array & 0x0F, array >> 4], axis=-1).reshape(*array.shape[:-1], -1)
    return (nibbles.astype(np.int8) ^ 8) - 8


def test_onnx_reads_every_code_and_scale_back(exported: Any, checkpoint: Path) -> None:
    """By onnx's and safetensors' own readers."""
    from safetensors.numpy import load_file

    tensors = load_file(checkpoint / "model.safetensors")
    model = onnx.load(str(exported("portable") / "model.onnx"))  # with its weights
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    at = "model.layers.2"
    for name, modules in {
        "model.embed_tokens": ["model.embed_tokens"],
        f"{at}.self_attn.qkv_proj": [f"{at}.self_attn.{n}_proj" for n in "qkv"],
        f"{at}.feed_forward.shared_expert.down_proj": [
            f"{at}.feed_forward.shared_expert.down_proj"
        ],
        f"{at}.feed_forward.shared_expert.gate_up_proj": [
            f"{at}.feed_forward.shared_expert.{n}_proj" for n in ("gate", "up")
        ],
    }.items():
        wanted = np.concatenate([codes(tensors[f"{m}.qweight"]) for m in modules])
        # Of the graph: offset binary, 32 values of one scale side by side.
        found = codes(stored[f"{name}.qweight"] ^ 0x88).reshape(wanted.shape)
        assert np.array_equal(found, wanted), name
        scales = np.concatenate([tensors[f"{m}.weight_scale"] for m in modules])
        assert stored[f"{name}.weight_scale"].tobytes() == scales.tobytes(), name
    for stem in ("gate_up", "down"):
        name = f"{at}.feed_forward.experts.{stem}"
        found = codes(stored[f"{name}_qweight"] ^ 0x88)
        assert np.array_equal(found, codes(tensors[f"{name}_qweight"]))
        assert stored[f"{name}_scale"].tobytes() == tensors[f"{name}_scale"].tobytes()
    fused = onnx.load(str(exported("fused") / "model.onnx"))
    stored = {t.name: numpy_helper.to_array(t) for t in fused.graph.initializer}
    packed = [n for n in tensors if n.endswith(("qweight", "scale"))]
    assert len(packed) == 2 + 3 * 2 * (4 + 2 + 3)
    for name in packed:
        assert stored[name].tobytes() == tensors[name].tobytes(), name


def test_graphs_pass_onnx_own_checks_and_name_only_files_that_are_there(exported: Any) -> None:
    for form in ("portable", "qmoe", "fused"):
        folder = exported(form)
        onnx.checker.check_model(str(folder / "model.onnx"), full_check=form == "fused")
        manifest = files.read_json(folder / "manifest.json")
        there = {p.name for p in folder.iterdir()} - {"manifest.json"}
        assert there == set(manifest["files"])
        config = files.read_json(folder / "genai_config.json")
        library = config["model"]["decoder"]["session_options"].get("custom_ops_library")
        assert (library is not None) == (form == "fused") and (library is None or library in there)
        assert config["model"]["eos_token_id"] == manifest["tokens"]["eos"]


def test_a_folder_weighs_what_the_checkpoint_does(tmp_path: Path) -> None:
    """Of sizes at which tables and the graph do not count, which are a few hundred kB."""
    args = ModelArgs(
        hidden_size=256,
        num_hidden_layers=1,
        num_attention_heads=8,
        intermediate_size=128,
        intermediate_size_mlp=512,
        vocab_size=16000,
        bos_token_id=0,
        eos_token_id=(1,),
    )
    write_random_checkpoint(tmp_path / "it", args, seed=0, quantized=True)
    for form in ("portable", "fused", "qmoe"):
        options = ExportOptions(form=form, context=256, requantize=form == "qmoe")
        done = export_onnx(tmp_path / "it", tmp_path / form, options)
        assert done.model_bytes < 1.03 * done.checkpoint_bytes, form


def test_the_engine_opens_any_form_and_says_what_it_is(
    exported: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported("portable")
    engine, tokenizer = open_for_prompts(folder)
    assert "in ONNX Runtime" in engine.describe() and "(portable, " in engine.describe()
    assert tokenizer.eos_token_ids == {2, 5}
    session = engine.session()
    logits = session.feed([1, 7, 30, 44])
    session.feed([9, 9])
    session.rewind(4)
    other = engine.session(context=8)
    np.testing.assert_array_equal(session.feed([12]), other_logits(other, [1, 7, 30, 44], 12))
    assert logits.shape == (1, 480)
    for line, message in (
        (["--engine", "cpu"], "is an ONNX export: run it with the engine 'onnx'"),
        (["--engine", "mlx"], "is an ONNX export: run it with the engine 'onnx'"),
        (["--precision", "int8"], "of the form portable, whose precision is fixed"),
        (["--threads", "0"], "0 threads"),
    ):
        assert main(["generate", str(folder), "--prompt", "a", *line]) == 2
        out, err = capsys.readouterr()
        assert out == "" and message in err, err
    with pytest.raises(UserError, match=r"of 200 tokens: this folder was exported with 192"):
        engine.session(200)
    with pytest.raises(UserError, match="this model takes 1 to 256"):
        engine.session(257)
    assert main(["info", str(exported("qmoe")), "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["form"], record["nodes"]["QMoE"], record["problems"]) == ("qmoe", 3, [])
    assert 0.01 < record["added_error"]["logits_median"] < 1
    assert main(["info", str(folder)]) == 0
    assert "1.23 and later" in capsys.readouterr().out


def other_logits(session: Any, tokens: list[int], last: int) -> np.ndarray:
    session.feed(tokens)
    return session.feed([last])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "qmoe"}, "rounds the routed experts a second time.*Add --requantize"),
        ({"form": "portable", "requantize": True}, "--requantize is for --form qmoe"),
        ({"context": 257}, "--context is 257, beyond the 256 positions"),
        ({"context": 3}, "at least 4 tokens"),
        ({"form": "qmo"}, r"did you mean 'qmoe'\?"),
        ({"accuracy_level": 2}, "0 .*, 1 .* or 4"),
        ({"activations": "bfloat16"}, "it must be float32 or float16"),
    ],
)
def test_impossible_options(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        export_onnx(checkpoint, tmp_path / "out", ExportOptions(**{"context": 64, **options}))
    assert not [*tmp_path.iterdir()]


def test_outputs_that_exist(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_onnx(checkpoint, out, PORTABLE)
    with pytest.raises(UserError, match="exists: choose another name, or replace it"):
        export_onnx(checkpoint, out, PORTABLE)
    again = ExportOptions(form="portable", context=32)
    assert export_onnx(checkpoint, out, again, force=True).folder == out
    assert files.read_json(out / "manifest.json")["context"] == 32
    shutil.copytree(checkpoint, tmp_path / "mine")
    with pytest.raises(UserError, match="is not an export of ours, so nothing replaces it"):
        export_onnx(checkpoint, tmp_path / "mine", PORTABLE, force=True)
    with pytest.raises(UserError, match="contains the source"):
        copy = shutil.copytree(checkpoint, out / "inside")
        export_onnx(copy, out, PORTABLE, force=True)
    with pytest.raises(UserError, match=r"out, which is read"):
        export_onnx(checkpoint, out / "new", PORTABLE, adapters=[(out, 1.0)])


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(folder_module.shutil, "disk_usage", lambda place: usage(9, 9, 1000))
        with pytest.raises(UserError, match=r"0\.0 MB free, and exporting needs"):
            export_onnx(checkpoint, tmp_path / "out", PORTABLE)
    for place in ("build", "write_companions", "list_files"):
        with monkeypatch.context() as patch:
            patch.setattr(folder_module, place, full)
            with pytest.raises(UserError, match=r"could not be written .*No space left"):
                export_onnx(checkpoint, tmp_path / "out", PORTABLE)
    assert not [*tmp_path.iterdir()]


def test_what_is_missing_or_too_old_is_one_sentence(
    exported: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(message: str, call: Callable[[], object]) -> None:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)

    with monkeypatch.context() as patch:
        patch.setattr("onnxruntime.__version__", "1.22.1")
        folder = exported("portable")
        refused("needs ONNX Runtime 1.23 or later, and 1.22.1", lambda: open_engine(folder))
    with monkeypatch.context() as patch:
        patch.setattr(onnx_operators, "_PATH", tmp_path / "none.so")
        refused(
            "not there", lambda: export_onnx(checkpoint, tmp_path / "out", ExportOptions(context=8))
        )
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "onnxruntime", None)
        refused("needs the package onnxruntime", lambda: open_engine(exported("portable")))
    folder = shutil.copytree(exported("fused"), tmp_path / "fused")
    (library,) = folder.glob("libmobilemoe_ort.*")
    library.write_bytes(b"no library")
    refused("does not load", lambda: open_engine(folder))
    library.unlink()
    refused("lacks libmobilemoe_ort", lambda: open_engine(folder))
    folder = shutil.copytree(exported("portable"), tmp_path / "portable")
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    model.opset_import[0].version = 99
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    refused("does not load", lambda: open_engine(folder))
    refused("no folder that `mobilemoe export onnx` wrote", lambda: open_engine(checkpoint, "onnx"))
    refused(
        "the engine 'onnx' takes 1 to 16", lambda: open_engine(exported("portable"), threads=17)
    )
    refused("takes no adapters", lambda: open_engine(exported("portable"), "onnx", adapters=[1]))
    refused("takes no adapters", lambda: open_engine(exported("portable"), adapters=[1]))


def test_an_export_without_onnx_runtime_is_one_sentence(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    line = ["export", "onnx", str(checkpoint), str(tmp_path / "out"), "--form", "portable"]
    assert main(line) == 2
    out, err = capsys.readouterr()
    assert out == "" and "needs the package onnxruntime" in err and err.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_graph_that_loads_and_does_not_run(exported: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(exported("portable"), tmp_path / "it")
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    (ids,) = (value for value in model.graph.input if value.name == "input_ids")
    ids.type.tensor_type.shape.dim[1].dim_value = 7
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    session = open_engine(folder).session()
    with pytest.raises(UserError, match=r"does not run .*it: .*invalid dimensions"):
        session.feed([1, 2, 3])


def test_without_its_manifest_it_is_no_checkpoint(
    exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(exported("portable"), tmp_path / "it")
    (folder / "manifest.json").unlink()
    assert main(["info", str(folder)]) == 2
    assert "no folder that `mobilemoe export onnx` wrote" in capsys.readouterr().err
    for line in (["generate", str(folder), "--prompt", "x"], ["convert", str(folder), "out"]):
        assert main(line) == 2
        assert "only model.onnx: an ONNX model is run by" in capsys.readouterr().err


def test_info_of_damaged_files_is_one_sentence(
    exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(exported("portable"), tmp_path / "it")
    for name, message in (
        ("tokenizer_config.json", "tokenizer_config.json is not a JSON object"),
        ("manifest.json", "is no folder that `mobilemoe export onnx` wrote"),
    ):
        (folder / name).write_text("[]")
        assert main(["info", str(folder)]) == 2
        assert message in capsys.readouterr().err
