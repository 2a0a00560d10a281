import Foundation

/// Reads every known spelling of config.json into the published one, and ignores nothing silently.
///
/// A field either has its published name, is another spelling of one, has the one value that
/// MobileMoE implements, or has no part in the model's numbers. All others are refused by name.
enum ConfigSpelling {
    /// Other models' names of published fields. Beside the published name with the same value such a
    /// field says nothing new; otherwise it is refused.
    static let otherNames = [
        "num_experts": "num_local_experts",
        "n_routed_experts": "num_local_experts",
        "num_routed_experts": "num_local_experts",
        "num_experts_per_token": "num_experts_per_tok",
        "moe_intermediate_size": "intermediate_size",
        "shared_expert_intermediate_size": "intermediate_size_mlp",
        "hidden_activation": "hidden_act",
        "activation_function": "hidden_act",
        "norm_eps": "rms_norm_eps",
        "layer_norm_eps": "rms_norm_eps",
        "layer_norm_epsilon": "rms_norm_eps",
        "num_layers": "num_hidden_layers",
    ]

    /// Fields of no account for the numbers: how a model is trained, stored, labelled or sampled from.
    private static let bookkeeping = names(
        // of every configuration
        """
        architectures auto_map transformers_version name_or_path model_file use_cache
        initializer_range pad_token_id sep_token_id decoder_start_token_id tokenizer_class
        output_attentions output_hidden_states return_dict return_dict_in_generate torchscript
        problem_type id2label label2id num_labels finetuning_task task_specific_params prefix
        gradient_checkpointing cache_implementation attn_implementation experts_implementation
        """
            // of training alone
            + " output_router_logits router_aux_loss_coef router_z_loss_coef router_jitter_noise"
            // of Llama 4's attn_temperature_tuning, which must be false
            + " attn_scale floor_scale "
            // of generation, which options and generation_config.json decide
            + """
            do_sample early_stopping max_length min_length max_new_tokens num_beams num_beam_groups
            diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
            no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
            output_scores forced_bos_token_id forced_eos_token_id remove_invalid_values
            exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
            """)

    /// Fields of related models, with the value that leaves MobileMoE's numbers as they are.
    private static let neutral: [(name: String, only: JSON)] = [
        ("mlp_bias", .bool(false)),
        ("use_bias", .bool(false)),
        ("qkv_bias", .bool(false)),
        ("lm_head_bias", .bool(false)),
        ("clip_qkv", .bool(false)),
        ("use_sliding_window", .bool(false)),
        ("pretraining_tp", .integer(1)),
        ("hidden_dropout", .integer(0)),
        ("embd_pdrop", .integer(0)),
        ("resid_pdrop", .integer(0)),
        ("partial_rotary_factor", .integer(1)),
        ("rope_interleave", .bool(true)),  // adjacent pairs
        ("logit_scale", .integer(1)),
        ("logits_scaling", .integer(1)),
        ("embedding_multiplier", .integer(1)),
        ("residual_multiplier", .integer(1)),
        ("scoring_func", .string("sigmoid")),
        ("topk_method", .string("noaux_tc")),  // chosen by biased, weighted by unbiased score
        ("n_group", .integer(1)),
        ("topk_group", .integer(1)),
        ("n_shared_experts", .integer(1)),
        ("num_shared_experts", .integer(1)),
        ("first_k_dense_replace", .integer(0)),
        ("decoder_sparse_step", .integer(1)),
        ("moe_layer_freq", .integer(1)),
        ("mlp_only_layers", .array([])),
        ("is_causal", .bool(true)),
        ("is_encoder_decoder", .bool(false)),
        ("add_cross_attention", .bool(false)),
        ("tie_encoder_decoder", .bool(false)),
        ("chunk_size_feed_forward", .integer(0)),
        ("pruned_heads", .object(.empty)),
        ("use_bfloat16", .bool(false)),
        ("is_decoder", .bool(false)),
        ("quantize_activations", .bool(false)),  // mlx-lm's loader adds it
    ]

    /// Understood below, though they are not published fields.
    private static let understood = names(
        """
        dtype rope_parameters original_max_position_embeddings quantization quantization_config
        moe_layers no_rope_layer_interval attention_chunk_size sliding_window query_pre_attn_scalar
        """)

    // Numbers, switches and objects may be anything. A text or a list is taken for a description,
    // unless its name has one of these parts, or it is a word with one of those.
    private static let partsOfAModel = names(
        """
        act attn attention bias chunk conv embed expert factor feed ffn func gate glu head hidden
        layer linear logit mask method mlp moe norm position quant residual rope rotary rout scal
        scor size softcap theta tie type weight window
        """)
    private static let partsOfAnActivation = names("elu glu swish silu mish tanh sigmoid softmax")

    private static func names(_ text: String) -> Set<String> {
        Set(text.split(whereSeparator: \.isWhitespace).map(String.init))
    }

    /// The content of config.json under the names in `known`, the published ones, without nulls.
    ///
    /// `rope_scaling` is one block with `rope_type` and nothing about theta, or absent. Throws for a
    /// contradiction between two spellings, and for a value that is not MobileMoE's.
    /// `checkUnknown` looks at the rest.
    static func publishedFields(
        _ config: JSON.Object, known: Set<String>
    ) throws -> [String: JSON] {
        var given: [String: JSON] = [:]
        for (name, value) in config.entries where !value.isNull { given[name] = value }
        var fields = given.filter { known.contains($0.key) }
        if let type = try dtype(given) { fields["torch_dtype"] = type }
        try checkNeutral(given)
        fields.merge(try RopeSpelling(given: given).fields()) { $1 }
        if fields["head_dim"] == nil, let size = try headDim(given) {
            fields["head_dim"] = .integer(size)
        }
        if let block = given["quantization_config"],
            !(given["quantization"].map { block.equals($0) } ?? false)
        {
            throw bad(
                "quantization_config", block,
                "quantised checkpoints are read by the block 'quantization' alone")
        }
        return fields
    }

    /// Throws for the first field that may change the numbers and is not understood.
    static func checkUnknown(_ config: JSON.Object, known: Set<String>) throws {
        for (name, value) in config.entries {
            if value.isNull || known.contains(name) || bookkeeping.contains(name)
                || neutral.contains(where: { $0.name == name }) || understood.contains(name)
                || name.hasPrefix("_")
            {
                continue
            }
            if let meant = otherNames[name] ?? closest(name, known.sorted(), cutoff: 0.9),
                let published = config[meant]
            {
                if published.equals(value) { continue }
                throw configError(
                    "\(name) is \(value.shown) and \(meant) is \(published.shown): they mean the "
                        + "same, and only \(meant) is a field of MobileMoE. Remove \(name).")
            }
            if describes(name.lowercased(), value) { continue }
            let hint = didYouMean(name, known.filter { config[$0] == nil })
            throw configError(
                "\(name) is not a known field\(hint.isEmpty ? " (its value: \(value.shown))" : hint). "
                    + "It may change what the model computes, so it is not ignored: correct its "
                    + "name, or remove it if it only describes.")
        }
    }

    private static func describes(_ name: String, _ value: JSON) -> Bool {
        let values: [JSON]
        switch value {
        case .string: values = [value]
        case .array(let items): values = items
        default: return false
        }
        let words = values.compactMap(\.string).filter { !$0.contains(" ") }.map { $0.lowercased() }
        let activation = words.contains { word in
            partsOfAnActivation.contains { word.contains($0) }
        }
        return !activation && !partsOfAModel.contains { name.contains($0) }
    }

    /// `torch_dtype`, which transformers 5 calls `dtype`.
    private static func dtype(_ given: [String: JSON]) throws -> JSON? {
        let spelt = ["torch_dtype", "dtype"].compactMap { name in given[name].map { (name, $0) } }
        let plain = spelt.map { _, value -> JSON in
            guard let text = value.string, text.hasPrefix("torch.") else { return value }
            return .string(String(text.dropFirst("torch.".count)))
        }
        if let first = plain.first, let last = plain.last, !first.equals(last) {
            throw contradiction(spelt)
        }
        return plain.first
    }

    private static func checkNeutral(_ given: [String: JSON]) throws {
        for (name, only) in neutral {
            if let value = given[name], !value.equals(only) {
                throw bad(name, value, "only \(only.shown) is what MobileMoE implements")
            }
        }
        if let layers = given["num_hidden_layers"]?.integer, let which = given["moe_layers"],
            !(which.array.map { $0.count == layers && $0.enumerated().allSatisfy { $1.equals(.integer($0)) } }
                ?? false)
        {
            throw bad("moe_layers", which, "every MobileMoE layer is a mixture of experts")
        }
        if let interval = given["no_rope_layer_interval"],
            given["no_rope_layers"].map({ $0.isFalsy }) ?? true
        {
            throw bad(
                "no_rope_layer_interval", interval,
                "without no_rope_layers it would take RoPE from some layers")
        }
        let context = given["max_position_embeddings"]
        for name in ["attention_chunk_size", "sliding_window"] {
            guard let span = given[name] else { continue }
            if name == "sliding_window", case .bool(false) = given["use_sliding_window"] { continue }
            if let span = span.integer, let context = context?.integer, span >= context { continue }
            throw bad(
                name, span,
                "MobileMoE attends in full, to all of its \(context?.shown ?? "") tokens of context")
        }
        if let scalar = given["query_pre_attn_scalar"],
            !(given["head_dim"].map { scalar.equals($0) } ?? false)
        {
            throw bad(
                "query_pre_attn_scalar", scalar, "MobileMoE scales attention by 1 / sqrt(head_dim)")
        }
    }

    /// transformers' rule where `head_dim` is absent; nil: what is wrong is said of the other fields.
    private static func headDim(_ given: [String: JSON]) throws -> Int? {
        guard let hidden = given["hidden_size"]?.integer,
            let heads = given["num_attention_heads"]?.integer, heads >= 1
        else { return nil }
        guard hidden.isMultiple(of: heads) else {
            throw configError(
                "head_dim is missing, and hidden_size (\(hidden)) is not a multiple of "
                    + "num_attention_heads (\(heads)), from which it would follow.")
        }
        return hidden / heads
    }
}

/// An error about config.json.
func configError(_ what: String) -> MobileMoEError {
    MobileMoEError(.checkpoint, "config.json: \(what)")
}

/// The error for one field's value.
func bad(_ name: String, _ value: JSON, _ why: String) -> MobileMoEError {
    configError("\(name) is \(value.shown); \(why).")
}

func contradiction(_ spelt: [(String, JSON)]) -> MobileMoEError {
    let (one, other) = (spelt[0], spelt[spelt.count - 1])
    return MobileMoEError(
        .checkpoint,
        "config.json contradicts itself: \(one.0) is \(one.1.shown), but \(other.0) is "
            + "\(other.1.shown). Remove the one that is wrong.")
}

extension JSON.Object {
    static var empty: JSON.Object { JSON.Object([]) }
}

extension JSON {
    /// As Python compares: 1, 1.0 and true are the same.
    func equals(_ other: JSON) -> Bool {
        if let one = number, let two = other.number { return one == two }
        switch (self, other) {
        case (.null, .null): return true
        case (.string(let one), .string(let two)): return one == two
        case (.array(let one), .array(let two)):
            return one.count == two.count && zip(one, two).allSatisfy { $0.equals($1) }
        case (.object(let one), .object(let two)):
            return one.entries.count == two.entries.count
                && one.entries.allSatisfy { key, value in two[key].map { value.equals($0) } ?? false }
        default: return false
        }
    }

    /// What Python holds for false.
    var isFalsy: Bool {
        switch self {
        case .null: true
        case .bool(let value): !value
        case .integer(let number): number == 0
        case .number(let number): number == 0
        case .string(let text): text.isEmpty
        case .array(let items): items.isEmpty
        case .object(let object): object.entries.isEmpty
        }
    }

    private var number: Double? {
        if case .bool(let value) = self { value ? 1 : 0 } else { double }
    }
}
