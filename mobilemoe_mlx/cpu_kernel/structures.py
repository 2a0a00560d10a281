"""The structures and numbers of coreml/kernel/include, field by field."""

from __future__ import annotations

import ctypes as c

ABI_VERSION = 3

PRECISIONS = {"exact": 0, "int16": 1, "int8": 2}
CACHE_TYPES = {"float32": 0, "float16": 1, "int8": 2}
LOGITS_LAST, LOGITS_ALL = 1, 2
(
    OK,
    BAD_ARGUMENT,
    OUT_OF_MEMORY,
    UNSUPPORTED_CPU,
    CONTEXT_FULL,
    CANCELLED,
    BUSY,
    READ_FAILED,
) = range(8)
MOST_THREADS = 16


class Error(c.Structure):
    """What a failed call says."""

    _fields_ = [("status", c.c_int), ("message", c.c_char * 256)]


class RuntimeOptions(c.Structure):
    """Precision, threads, code path."""

    _fields_ = [("precision", c.c_int32), ("threads", c.c_int32), ("cpu_path", c.c_char_p)]


class Tensor(c.Structure):
    """Bytes of the caller."""

    _fields_ = [("data", c.c_void_p), ("bytes", c.c_size_t)]


class Int4(c.Structure):
    """Codes and scales."""

    _fields_ = [("codes", Tensor), ("scales", Tensor)]


class Config(c.Structure):
    """Sizes, by config.json's names."""

    _fields_ = [
        ("vocab_size", c.c_int32),
        ("hidden_size", c.c_int32),
        ("num_hidden_layers", c.c_int32),
        ("num_attention_heads", c.c_int32),
        ("num_key_value_heads", c.c_int32),
        ("head_dim", c.c_int32),
        ("intermediate_size", c.c_int32),
        ("intermediate_size_mlp", c.c_int32),
        ("num_local_experts", c.c_int32),
        ("num_experts_per_tok", c.c_int32),
        ("norm_topk_prob", c.c_int32),
        ("use_qk_norm", c.c_int32),
        ("rms_norm_eps", c.c_float),
        ("routed_scaling_factor", c.c_float),
        ("rope_periods", c.POINTER(c.c_float)),
    ]


class MoeWeights(c.Structure):
    """Router, routed experts and the shared one."""

    _fields_ = [
        ("router", Tensor),
        ("expert_bias", Tensor),
        ("gate_up", Int4),
        ("down", Int4),
        ("shared_gate", Int4),
        ("shared_up", Int4),
        ("shared_down", Int4),
    ]


class LayerWeights(c.Structure):
    """One decoder layer."""

    _fields_ = [
        ("input_layernorm", Tensor),
        ("q_proj", Int4),
        ("k_proj", Int4),
        ("v_proj", Int4),
        ("o_proj", Int4),
        ("post_attention_layernorm", Tensor),
        ("feed_forward", MoeWeights),
        ("sliding_window", c.c_int32),
    ]


class ExpertSource(c.Structure):
    """Where routed experts come from when they are needed."""

    _fields_ = [("read", c.c_void_p), ("owner", c.c_void_p), ("memory_bytes", c.c_size_t)]


class Weights(c.Structure):
    """All tensors of a model."""

    _fields_ = [
        ("embed_tokens", Int4),
        ("norm", Tensor),
        ("layers", c.POINTER(LayerWeights)),
        ("expert_source", c.POINTER(ExpertSource)),
    ]


class ExpertCounters(c.Structure):
    """What an expert source was asked for."""

    _fields_ = [
        ("hits", c.c_int64),
        ("misses", c.c_int64),
        ("bytes_read", c.c_int64),
        ("held", c.c_int32),
    ]


class ExpertPart(c.Structure):
    """A tensor of all experts of a layer in a file."""

    _fields_ = [("path", c.c_char_p), ("offset", c.c_uint64), ("flip", c.c_uint8)]


class ExpertParts(c.Structure):
    """The tensors of a layer's experts."""

    _fields_ = [
        ("gate_up_codes", ExpertPart),
        ("gate_up_scales", ExpertPart),
        ("down_codes", ExpertPart),
        ("down_scales", ExpertPart),
    ]


class SessionOptions(c.Structure):
    """Cache and block of a session."""

    _fields_ = [("context", c.c_int32), ("cache_type", c.c_int32), ("block", c.c_int32)]
