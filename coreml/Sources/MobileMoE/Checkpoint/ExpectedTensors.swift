/// The tensors of the published INT4 layout, and what each of them must be.
struct ExpectedTensor: Equatable {
    let shape: [Int]
    let dtypes: [String]  // any of these, the published one first
}

/// The published names of a layer's tensors.
enum TensorNames {
    static let embedding = "model.embed_tokens"
    static let norm = "model.norm.weight"

    static func layer(_ index: Int) -> String { "model.layers.\(index)" }
    static func experts(_ layer: Int) -> String { "\(TensorNames.layer(layer)).feed_forward.experts" }

    /// Codes and scales of a packed linear.
    static func packed(_ module: String) -> (codes: String, scales: String) {
        ("\(module).qweight", "\(module).weight_scale")
    }

    /// Codes and scales of a layer's routed experts: gate_up, then down.
    static func packedExperts(_ layer: Int) -> [(codes: String, scales: String)] {
        ["gate_up", "down"].map {
            ("\(experts(layer)).\($0)_qweight", "\(experts(layer)).\($0)_scale")
        }
    }
}

extension ModelConfiguration {
    /// Field of config.json -> its value, the end of the name of a tensor, and the axis (never a packed
    /// one) that it is the size of.
    var sizesOfTensors: [(field: String, value: Int, ending: String, axis: Int)] {
        [
            ("vocab_size", vocabularySize, "model.embed_tokens.qweight", 0),
            ("hidden_size", hiddenSize, "model.norm.weight", 0),
            ("num_local_experts", expertCount, ".expert_bias", 0),
            ("intermediate_size", expertWidth, ".experts.down_qweight", 1),
            ("intermediate_size_mlp", sharedExpertWidth, ".shared_expert.gate_proj.qweight", 0),
            ("num_attention_heads x head_dim", queryDim, ".q_proj.qweight", 0),
            ("num_key_value_heads x head_dim", keyValueDim, ".k_proj.qweight", 0),
        ]
    }

    var expectedTensors: [String: ExpectedTensor] {
        var out: [String: ExpectedTensor] = [:]
        let (d, w, shared, e) = (hiddenSize, expertWidth, sharedExpertWidth, expertCount)

        func packed(_ names: (codes: String, scales: String), _ rows: [Int], _ columns: Int) {
            out[names.codes] = ExpectedTensor(shape: rows + [columns / 2], dtypes: ["U8"])
            out[names.scales] = ExpectedTensor(
                shape: rows + [columns / Self.groupSize], dtypes: ["F16"])
        }
        func linear(_ module: String, _ rows: Int, _ columns: Int) {
            packed(TensorNames.packed(module), [rows], columns)
        }
        func vector(_ name: String, _ size: Int) {
            out[name] = ExpectedTensor(shape: [size], dtypes: ["BF16", "F32"])
        }

        linear(TensorNames.embedding, vocabularySize, d)
        vector(TensorNames.norm, d)
        for layer in 0..<layerCount {
            let at = TensorNames.layer(layer)
            vector("\(at).input_layernorm.weight", d)
            linear("\(at).self_attn.q_proj", queryDim, d)
            linear("\(at).self_attn.k_proj", keyValueDim, d)
            linear("\(at).self_attn.v_proj", keyValueDim, d)
            linear("\(at).self_attn.o_proj", d, queryDim)
            vector("\(at).post_attention_layernorm.weight", d)
            if e > 0 {
                out["\(at).feed_forward.router.weight"] = ExpectedTensor(shape: [e, d], dtypes: ["F32"])
                vector("\(at).feed_forward.expert_bias", e)
                let experts = TensorNames.packedExperts(layer)
                packed(experts[0], [e, d], 2 * w)
                packed(experts[1], [e, w], d)
            }
            if shared > 0 {
                linear("\(at).feed_forward.shared_expert.gate_proj", shared, d)
                linear("\(at).feed_forward.shared_expert.up_proj", shared, d)
                linear("\(at).feed_forward.shared_expert.down_proj", d, shared)
            }
        }
        return out
    }
}
