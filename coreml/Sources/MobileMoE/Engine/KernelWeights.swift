import Foundation
import MobileMoEKernel

/// A published INT4 checkpoint as the kernel's structures, which point into its memory maps.
struct KernelWeights {
    let tensors: [String: StoredTensor]
    let maps: [String: MappedFile]  // by path

    /// `expertsToo`: routed experts are used in place too, so that all of the files is.
    init(_ checkpoint: Checkpoint, expertsToo: Bool) throws {
        var tensors = checkpoint.tensors
        if !expertsToo {
            for layer in 0..<checkpoint.configuration.layerCount {
                for names in TensorNames.packedExperts(layer) {
                    tensors[names.codes] = nil
                    tensors[names.scales] = nil
                }
            }
        }
        var maps: [String: MappedFile] = [:]
        for tensor in tensors.values {
            let map = try maps[tensor.path] ?? MappedFile(tensor.path, largePages: expertsToo)
            maps[tensor.path] = map
            guard tensor.offset + tensor.byteCount <= map.bytes.count else {
                throw MobileMoEError(.checkpoint, "\(tensor.path) became shorter while it was read.")
            }
        }
        (self.tensors, self.maps) = (tensors, maps)
    }

    /// Bytes of the tensors that are used in place.
    var byteCount: Int { tensors.values.reduce(0) { $0 + $1.byteCount } }

    func layers(_ configuration: ModelConfiguration) -> [mobilemoe_layer_weights] {
        (0..<configuration.layerCount).map { index in
            let at = TensorNames.layer(index)
            let experts = TensorNames.packedExperts(index).map { int4($0) }
            var moe = mobilemoe_moe_weights()
            moe.router = tensor("\(at).feed_forward.router.weight")
            moe.expert_bias = tensor("\(at).feed_forward.expert_bias")
            (moe.gate_up, moe.down) = (experts[0], experts[1])
            moe.shared_gate = linear("\(at).feed_forward.shared_expert.gate_proj")
            moe.shared_up = linear("\(at).feed_forward.shared_expert.up_proj")
            moe.shared_down = linear("\(at).feed_forward.shared_expert.down_proj")
            var layer = mobilemoe_layer_weights()
            layer.input_layernorm = tensor("\(at).input_layernorm.weight")
            layer.q_proj = linear("\(at).self_attn.q_proj")
            layer.k_proj = linear("\(at).self_attn.k_proj")
            layer.v_proj = linear("\(at).self_attn.v_proj")
            layer.o_proj = linear("\(at).self_attn.o_proj")
            layer.post_attention_layernorm = tensor("\(at).post_attention_layernorm.weight")
            layer.feed_forward = moe
            return layer
        }
    }

    func linear(_ module: String) -> mobilemoe_int4 { int4(TensorNames.packed(module)) }

    /// Without bytes where it is not used in place, and where the model's form does not have it.
    func tensor(_ name: String) -> mobilemoe_tensor {
        guard let tensor = tensors[name], let map = maps[tensor.path] else {
            return mobilemoe_tensor(data: nil, bytes: 0)
        }
        return mobilemoe_tensor(
            data: map.bytes.baseAddress! + tensor.offset, bytes: tensor.byteCount)
    }

    private func int4(_ names: (codes: String, scales: String)) -> mobilemoe_int4 {
        mobilemoe_int4(codes: tensor(names.codes), scales: tensor(names.scales))
    }
}

extension ModelConfiguration {
    /// Calls `body` with the kernel's configuration, which is valid within.
    func withKernelConfig<Result>(
        _ body: (inout mobilemoe_config) throws -> Result
    ) throws -> Result {
        var periods = [Float](repeating: 0, count: headDim / 2)
        let scaling = ropeScaling
        try kernel {
            // A factor of 1 is no scaling; the rest is then of no account.
            mobilemoe_rope_periods(
                Int32(headDim), ropeTheta, scaling?.factor ?? 1, scaling?.lowFrequencyFactor ?? 1,
                scaling?.highFrequencyFactor ?? 1, scaling?.originalContext ?? 8192, &periods, $0)
        }
        return try periods.withUnsafeBufferPointer { periods in
            var config = mobilemoe_config(
                vocab_size: Int32(vocabularySize), hidden_size: Int32(hiddenSize),
                num_hidden_layers: Int32(layerCount), num_attention_heads: Int32(attentionHeads),
                num_key_value_heads: Int32(keyValueHeads), head_dim: Int32(headDim),
                intermediate_size: Int32(expertWidth),
                intermediate_size_mlp: Int32(sharedExpertWidth),
                num_local_experts: Int32(expertCount), num_experts_per_tok: Int32(expertsPerToken),
                norm_topk_prob: normalizesExpertWeights ? 1 : 0,
                use_qk_norm: usesQueryKeyNorm ? 1 : 0, rms_norm_eps: Float(normEpsilon),
                routed_scaling_factor: Float(routedScalingFactor),
                rope_periods: periods.baseAddress)
            return try body(&config)
        }
    }
}
