"""ONNX Runtime's session of an ONNX export, or of an edited copy of its graph."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime

from mobilemoe_mlx.cpu_kernel.structures import PRECISIONS
from mobilemoe_mlx.engines.engine import check_choice
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.onnx_folder import names
from mobilemoe_mlx.onnx_folder.extra import onnx_runtime
from mobilemoe_mlx.onnx_folder.folder import PREFIX, ONNXFolder

_ERRORS_ONLY = 3  # of ONNX Runtime's log
# Where the weights of a graph that comes from memory are.
_FOLDER = "session.model_external_initializers_file_folder_path"


def check_precision(export: ONNXFolder, precision: str) -> None:
    """Raise UserError unless `export` takes `precision` instead of its own."""
    if export.operators is None:
        raise UserError(
            f"{export.path} is of the form {export.form}, whose precision is fixed when it is "
            "exported (--accuracy-level); only fused folders take another."
        )
    check_choice("precision", precision, PRECISIONS)


def open_session(
    export: ONNXFolder,
    threads: int,
    precision: str | None = None,
    model: onnx.ModelProto | None = None,
) -> onnxruntime.InferenceSession:
    """A session on the CPU.

    `precision`: of our own operators, instead of the export's. `model`: the graph to run on the
    export's weights, instead of its own. Raises UserError where the runtime is too old, or rejects
    the model or the library beside it.
    """
    oldest = str(export.manifest.get("onnxruntime", "1.22"))
    onnx_runtime(oldest, f"{export.path} (form {export.form})")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = export.runtime_threads or threads
    options.log_severity_level = _ERRORS_ONLY
    source: Any = str(export.model)
    if model is not None:
        source = model.SerializeToString()
        options.add_session_config_entry(_FOLDER, str(export.path))
    try:
        if export.operators is not None:
            options.add_session_config_entry(f"{PREFIX}threads", str(threads))
            if precision is not None:
                options.add_session_config_entry(f"{PREFIX}precision", precision)
            options.register_custom_ops_library(str(export.operators))
        return onnxruntime.InferenceSession(source, options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base
        raise _refused("load", export, error) from error


def run_session(export: ONNXFolder, runtime: onnxruntime.InferenceSession, binding: Any) -> None:
    """Compute what is bound; raises UserError where the runtime cannot (a damaged graph)."""
    try:
        runtime.run_with_iobinding(binding)
    except Exception as error:  # as above
        raise _refused("run", export, error) from error


def _refused(what: str, export: ONNXFolder, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"ONNX Runtime {onnxruntime.__version__} does not {what} {export.path}: {reason}"
    )


def read_model(export: ONNXFolder) -> onnx.ModelProto:
    """The graph without its weights; raises UserError for a file that is none."""
    try:
        return onnx.load(str(export.model), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's own
        raise UserError(f"{export.model} is damaged ({error}): export again.") from None


def all_logits_model(export: ONNXFolder) -> onnx.ModelProto:
    """The export's graph with the logits of all tokens instead of the last ones'."""
    model = read_model(export)
    try:
        (node,) = (n for n in model.graph.node if names.LAST_HIDDEN in n.output)
        (logits,) = (value for value in model.graph.output if value.name == names.LOGITS)
    except ValueError:
        raise UserError(f"{export.model} is damaged: export again.") from None
    node.op_type = "Identity"
    del node.input[1:], node.attribute[:]
    logits.type.tensor_type.shape.dim[1].dim_param = "tokens"
    return model
