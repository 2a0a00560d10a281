"""The MoE feed-forward block as one op of our own MIL dialect: `mb.moe_ffn(...)`.

Core ML knows no such op: `moe_lowering` replaces it by core ops before a program is saved.
"""

from __future__ import annotations

from coremltools.converters.mil.mil import Operation, types
from coremltools.converters.mil.mil.input_type import InputSpec, TensorInputType
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from mobilemoe_mlx.config import GROUP_SIZE


@SSAOpRegistry.register_op(namespace="moe")
class moe_ffn(Operation):  # coremltools takes the op's name from the class
    """Route each token to `top_k` of E experts, sum their weighted outputs and the shared expert's.

    With s = sigmoid(x @ router^T) in float32, the `top_k` experts of largest s + expert_bias are
    selected (ties: the lower index); their weights are s divided by its sum over the selected
    (+ 1e-20) times `routed_scaling_factor`. An expert is down(silu(gate(x)) * up(x)).

    A byte of packed codes holds two signed 4-bit codes along *out*, low nibble first (the published
    bytes, typed int8); value = code x scale, one scale for 32 consecutive codes along *out*.

    Parameters
    ----------
    x: tensor<[T, d], fp32>, the normed residual stream
    router: const tensor<[E, d], fp32>
    expert_bias: const tensor<[E], fp32>
    gate_up_codes: const tensor<[E, d, w], int8>, gate's w / 2 bytes of a row, then up's
    gate_up_scale: const tensor<[E, d, 2w / 32], fp16>
    down_codes: const tensor<[E, w, d / 2], int8>
    down_scale: const tensor<[E, w, d / 32], fp16>
    shared_gate_up: tensor<[2s, d], fp16>, the gate's s rows, then the up's
    shared_down: tensor<[d, s], fp16>
    top_k: const i32
    norm_topk_prob: const bool, whether the weights are divided by their sum
    routed_scaling_factor: const fp32

    Returns
    -------
    tensor<[T, d], fp32>
    """

    input_spec = InputSpec(
        x=TensorInputType(type_domain=types.fp32),
        router=TensorInputType(const=True, type_domain=types.fp32),
        expert_bias=TensorInputType(const=True, type_domain=types.fp32),
        gate_up_codes=TensorInputType(const=True, type_domain=types.int8),
        gate_up_scale=TensorInputType(const=True, type_domain=types.fp16),
        down_codes=TensorInputType(const=True, type_domain=types.int8),
        down_scale=TensorInputType(const=True, type_domain=types.fp16),
        shared_gate_up=TensorInputType(type_domain=types.fp16),
        shared_down=TensorInputType(type_domain=types.fp16),
        top_k=TensorInputType(const=True, type_domain=types.int32),
        norm_topk_prob=TensorInputType(const=True, type_domain=types.bool),
        routed_scaling_factor=TensorInputType(const=True, type_domain=types.fp32),
    )

    def type_inference(self) -> types.type:
        """The type of x; raises ValueError when the shapes of the inputs do not fit together."""
        if len(self.x.shape) != 2:
            raise ValueError(f"moe_ffn '{self.name}': x has the shape {self.x.shape}, not [T, d]")
        d = self.x.shape[1]
        experts, w = self.gate_up_codes.shape[0], self.gate_up_codes.shape[-1]
        s = self.shared_down.shape[-1]
        expected = {
            "router": (experts, d),
            "expert_bias": (experts,),
            "gate_up_codes": (experts, d, w),
            "gate_up_scale": (experts, d, 2 * w // GROUP_SIZE),
            "down_codes": (experts, w, d // 2),
            "down_scale": (experts, w, d // GROUP_SIZE),
            "shared_gate_up": (2 * s, d),
            "shared_down": (d, s),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"moe_ffn '{self.name}': {name} has the shape "
                    f"{tuple(getattr(self, name).shape)}, expected {shape}"
                )
        if not 1 <= self.top_k.val <= experts:
            raise ValueError(f"moe_ffn '{self.name}': top_k {self.top_k.val} of {experts} experts")
        return types.tensor(types.fp32, self.x.shape)
