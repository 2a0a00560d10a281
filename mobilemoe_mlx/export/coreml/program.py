"""The MIL program of a MobileMoE: `prefill` for a block of tokens and `decode` for one.

Built with the MIL Builder from the checkpoint's own bytes. The residual stream, norms, RoPE, the
norm of q and k and the router are float32; linears, attention and experts are float16.
"""

from __future__ import annotations

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, Var, types

from mobilemoe_mlx import int4
from mobilemoe_mlx.checkpoint.check import Checkpoint
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.export.coreml import moe_op, names, rope_table  # noqa: F401 (moe_op registers the op)
from mobilemoe_mlx.export.coreml.options import ExportOptions
from mobilemoe_mlx.export.int4_source import to_numpy

# Taken from the attention scores of positions that are not to be seen: float16 holds it, and its
# exponential is 0 beside scores of any model (normed q and k of 64 features keep them within 8).
_HIDDEN_SCORE = 30000.0


def build_program(checkpoint: Checkpoint, options: ExportOptions) -> Program:
    """The program with `moe_ffn` ops, not yet lowered.

    `checkpoint` is INT4 in the published layout (`int4_source.open_source`). Weights are read
    once and shared by both functions. State: key_cache and value_cache float16 [layers, kv_heads,
    context, head_dim]; keys are cached with the two members of each rotated pair apart (first all
    first members), which changes no product with a query.
    """
    weights = _Weights(checkpoint, options)
    program = Program()
    program.add_function(names.DECODE, _function(weights, 1))
    program.add_function(names.PREFILL, _function(weights, options.prefill_block))
    program.default_function_name = names.DECODE
    program.export_as_multifunction = True
    return program


class _Weights:
    """The program's constants as numpy arrays, put into one function after the other."""

    def __init__(self, checkpoint: Checkpoint, options: ExportOptions) -> None:
        self.args = checkpoint.args
        self.options = options
        self.arrays: dict[str, np.ndarray] = {}
        for constant in names.constants(checkpoint.args):
            tensors = checkpoint.tensors
            if constant.form == "int4":
                codes = [
                    np.array(int4.unpack(tensors[f"{s}.qweight"].read())) for s in constant.sources
                ]
                scales = [to_numpy(tensors[f"{s}.weight_scale"]) for s in constant.sources]
                # The view carries coremltools' mark of a 4-bit type, which `astype` may drop.
                codes = np.concatenate(codes).view(types.np_int4_dtype)
                self.arrays[f"{constant.name}_codes"] = codes
                self.arrays[f"{constant.name}_scale"] = np.concatenate(scales)
            else:
                array = to_numpy(tensors[constant.sources[0]])
                self.arrays[constant.name] = (
                    array.view(np.int8) if constant.form == "bytes" else array
                )
        self.arrays |= rope_table.rope_table(checkpoint.args, options.context)

    def put(self, name: str) -> Var:
        """The array `name` as a constant of the current function, shared with the other's."""
        var = mb.const(val=self.arrays[name], name=name)
        var.op.weight_id = name
        return var

    def put_int4(self, name: str) -> Var:
        """The linear or embedding `name`, fp16 [out, in], as codes and scales."""
        codes, scale = self.arrays[f"{name}_codes"], self.arrays[f"{name}_scale"]
        var = mb.constexpr_blockwise_shift_scale(data=codes, scale=scale, name=name)
        var.op.data.op.weight_id = f"{name}_codes"
        var.op.scale.op.weight_id = f"{name}_scale"
        return var


def _function(weights: _Weights, tokens: int) -> Function:
    args, options = weights.args, weights.options
    cache = (
        args.num_hidden_layers,
        args.num_key_value_heads,
        options.context,
        args.head_dim,
    )
    inputs = {
        names.TOKENS: mb.placeholder(shape=(1, tokens), dtype=types.int32),
        names.POSITION: mb.placeholder(shape=(1,), dtype=types.int32),
    }
    choose_last = tokens > 1 and options.logits == "last"
    if choose_last:
        inputs[names.LENGTH] = mb.placeholder(shape=(1,), dtype=types.int32)
    for state in (names.KEY_CACHE, names.VALUE_CACHE):
        inputs[state] = mb.state_tensor_placeholder(shape=cache, dtype=types.fp16)
    # The operations are those of iOS 18 whatever the target, so that both targets are one program.
    with Function(inputs, opset_version=ct.target.iOS18) as function:
        body = _Body(weights, function, tokens)
        embedding = weights.put_int4("embedding")
        token_ids = mb.reshape(x=function.inputs[names.TOKENS], shape=[tokens])
        rows = mb.gather(x=embedding, indices=token_ids, axis=0, validate_indices=False)
        h = mb.cast(x=rows, dtype="fp32")  # [T, d]
        for index in range(args.num_hidden_layers):
            h = body.layer(index, h)
        if choose_last:
            last = mb.sub(x=function.inputs[names.LENGTH], y=np.int32(1))
            h = mb.gather(x=h, indices=mb.cast(x=last, dtype="uint16"), axis=0)  # [1, d]
        h = mb.cast(x=body.norm("norm", h), dtype="fp16")
        logits = mb.linear(x=h, weight=embedding)
        function.set_outputs([mb.expand_dims(x=logits, axes=[0], name=names.LOGITS)])
    return function


class _Body:
    """Builds decoder layers into the current function."""

    def __init__(self, weights: _Weights, function: Function, tokens: int) -> None:
        self.args: ModelArgs = weights.args
        self.weights = weights
        self.tokens = tokens
        self.position = function.inputs[names.POSITION]
        self.states = {s: function.inputs[s] for s in (names.KEY_CACHE, names.VALUE_CACHE)}
        self.caches = {s: mb.read_state(input=v) for s, v in self.states.items()}
        positions = mb.add(x=self.position, y=np.arange(tokens, dtype=np.int32))  # [T]
        half = self.args.head_dim // 2
        self.cos, self.sin = (
            mb.reshape(
                x=mb.gather(x=weights.put(n), indices=positions, axis=0), shape=[tokens, 1, half]
            )
            for n in (names.ROPE_COS, names.ROPE_SIN)
        )
        self.mask = self._mask(positions, weights.options.context)
        self.end = mb.add(x=self.position, y=np.int32(tokens))

    def _mask(self, positions: Var, context: int) -> Var:
        """0 where a query may look, else far below 0: fp16 [1, 1, groups x T, context]."""
        keys = np.arange(context, dtype=np.int32)[None]
        seen = mb.less_equal(x=keys, y=mb.expand_dims(x=positions, axes=[1]))  # [T, context]
        mask = mb.sub(x=mb.cast(x=seen, dtype="fp16"), y=np.float16(1))
        mask = mb.mul(x=mask, y=np.float16(_HIDDEN_SCORE))
        groups = self.args.num_attention_heads // self.args.num_key_value_heads
        mask = mask if groups == 1 else mb.tile(x=mask, reps=[groups, 1])
        return mb.expand_dims(x=mask, axes=[0, 1])

    def layer(self, index: int, h: Var) -> Var:
        """One decoder layer: float32 [T, d] -> the same."""
        x = mb.cast(x=self.norm(names.layer(index, "input_norm"), h), dtype="fp16")
        h = mb.add(x=h, y=mb.cast(x=self._attention(index, x), dtype="fp32"))
        x = self.norm(names.layer(index, "moe_norm"), h)
        return mb.add(x=h, y=self._moe(index, x), name=names.hidden(index))

    def norm(self, name: str, x: Var) -> Var:
        """RMSNorm with the weight `name`, float32."""
        return mb.mul(x=self._unit_rms(x), y=self.weights.put(name))

    def _unit_rms(self, x: Var) -> Var:
        mean = mb.reduce_mean(x=mb.square(x=x), axes=[-1], keep_dims=True)
        return mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float32(self.args.rms_norm_eps)))

    def _moe(self, index: int, x: Var) -> Var:
        constant = {
            part: self.weights.put(names.layer(index, part))
            for part in (
                "router",
                "expert_bias",
                "gate_up_codes",
                "gate_up_scale",
                "down_codes",
                "down_scale",
            )
        }
        return mb.moe_ffn(
            x=x,
            **constant,
            shared_gate_up=self.weights.put_int4(names.layer(index, "shared_gate_up")),
            shared_down=self.weights.put_int4(names.layer(index, "shared_down")),
            top_k=self.args.num_experts_per_tok,
            norm_topk_prob=self.args.norm_topk_prob,
            routed_scaling_factor=np.float32(self.args.routed_scaling_factor),
            name=names.layer(index, "moe"),
        )

    def _attention(self, index: int, x: Var) -> Var:
        """fp16 [T, d] -> fp16 [T, d]; puts the new keys and values into the caches."""
        args, tokens = self.args, self.tokens
        heads, kv_heads, width = args.num_attention_heads, args.num_key_value_heads, args.head_dim
        qkv = mb.linear(x=x, weight=self.weights.put_int4(names.layer(index, "qkv")))
        qkv = mb.reshape(x=qkv, shape=[tokens, heads + 2 * kv_heads, width])
        qk = mb.slice_by_index(x=qkv, begin=[0, 0, 0], end=[tokens, heads + kv_heads, width])
        qk = self._rotate(mb.cast(x=qk, dtype="fp32"))
        qk = mb.transpose(x=mb.cast(x=qk, dtype="fp16"), perm=[1, 0, 2])  # [heads, T, width]
        # Queries of one key/value head become rows of one matrix, so that no key is repeated.
        queries = mb.slice_by_index(x=qk, begin=[0, 0, 0], end=[heads, tokens, width])
        queries = mb.reshape(x=queries, shape=[1, kv_heads, heads // kv_heads * tokens, width])
        keys = mb.slice_by_index(x=qk, begin=[heads, 0, 0], end=[heads + kv_heads, tokens, width])
        values = mb.slice_by_index(
            x=qkv, begin=[0, heads + kv_heads, 0], end=[tokens, heads + 2 * kv_heads, width]
        )
        values = mb.transpose(x=values, perm=[1, 0, 2])
        begin = mb.concat(values=[_int32(index, 0), self.position, _int32(0)], axis=0)
        end = mb.concat(values=[_int32(index + 1, kv_heads), self.end, _int32(width)], axis=0)
        out = mb.scaled_dot_product_attention(
            query=queries,
            key=self._cached(names.KEY_CACHE, index, keys, begin, end),
            value=self._cached(names.VALUE_CACHE, index, values, begin, end),
            attn_mask=self.mask,
        )
        out = mb.transpose(x=mb.reshape(x=out, shape=[heads, tokens, width]), perm=[1, 0, 2])
        out = mb.reshape(x=out, shape=[tokens, heads * width])
        return mb.linear(x=out, weight=self.weights.put_int4(names.layer(index, "o")))

    def _rotate(self, x: Var) -> Var:
        """RoPE on adjacent pairs, then the norm of q and k: float32 [T, heads, width]."""
        tokens, heads, width = x.shape
        pairs = mb.reshape(x=x, shape=[tokens, heads, width // 2, 2])
        first, second = (
            mb.slice_by_index(
                x=pairs,
                begin=[0, 0, 0, member],
                end=[tokens, heads, width // 2, member + 1],
                squeeze_mask=[False, False, False, True],
            )
            for member in (0, 1)
        )
        rotated = mb.concat(
            values=[
                mb.sub(x=mb.mul(x=first, y=self.cos), y=mb.mul(x=second, y=self.sin)),
                mb.add(x=mb.mul(x=first, y=self.sin), y=mb.mul(x=second, y=self.cos)),
            ],
            axis=2,
        )
        return self._unit_rms(rotated) if self.args.use_qk_norm else rotated

    def _cached(self, state: str, index: int, new: Var, begin: Var, end: Var) -> Var:
        """Write `new` [kv_heads, T, width] to begin:end; -> the layer's whole cache, rank 4."""
        kv_heads, tokens, width = new.shape
        context = self.caches[state].shape[2]
        updated = mb.slice_update(
            x=self.caches[state],
            update=mb.reshape(x=new, shape=[1, kv_heads, tokens, width]),
            begin=begin,
            end=end,
        )
        self.caches[state] = mb.coreml_update_state(state=self.states[state], value=updated)
        return mb.slice_by_index(
            x=self.caches[state],
            begin=[index, 0, 0, 0],
            end=[index + 1, kv_heads, context, width],
        )


def _int32(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)
