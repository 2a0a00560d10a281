import Foundation
import MLXLMCommon

/// A checkpoint's config.json, under its own names.
public struct MobileMoEConfiguration: Codable, Sendable, ModelConfigurationValidating {
    public let modelType: String
    public let vocabularySize: Int
    public let hiddenSize: Int
    public let layers: Int
    public let attentionHeads: Int
    public let keyValueHeads: Int
    public let headDim: Int
    /// The width of one routed expert, and of the shared one.
    public let expertWidth: Int
    public let sharedExpertWidth: Int
    public let experts: Int
    public let expertsPerToken: Int
    /// The most tokens of a text.
    public let context: Int
    public let normEpsilon: Float
    public let ropeTheta: Double
    public let ropeScaling: RopeScaling?
    public let routedScalingFactor: Float
    public let usesQueryKeyNorm: Bool?
    public let normalizesExpertWeights: Bool?

    public struct RopeScaling: Codable, Sendable {
        public let type: String
        public let factor: Double?
        public let originalContext: Double?
        public let lowFrequencyFactor: Double?
        public let highFrequencyFactor: Double?

        enum CodingKeys: String, CodingKey {
            case type = "rope_type"
            case factor
            case originalContext = "original_max_position_embeddings"
            case lowFrequencyFactor = "low_freq_factor"
            case highFrequencyFactor = "high_freq_factor"
        }
    }

    // What another model of the same type could ask for; see `validateModelConfiguration`.
    private let activation: String?
    private let tiesEmbedding: Bool?
    private let attentionBias: Bool?
    private let temperatureTuning: Bool?
    private let expertLayerStep: Int?
    private let ropeLayers: [Int]?

    enum CodingKeys: String, CodingKey {
        case modelType = "model_type"
        case vocabularySize = "vocab_size"
        case hiddenSize = "hidden_size"
        case layers = "num_hidden_layers"
        case attentionHeads = "num_attention_heads"
        case keyValueHeads = "num_key_value_heads"
        case headDim = "head_dim"
        case expertWidth = "intermediate_size"
        case sharedExpertWidth = "intermediate_size_mlp"
        case experts = "num_local_experts"
        case expertsPerToken = "num_experts_per_tok"
        case context = "max_position_embeddings"
        case normEpsilon = "rms_norm_eps"
        case ropeTheta = "rope_theta"
        case ropeScaling = "rope_scaling"
        case routedScalingFactor = "routed_scaling_factor"
        case usesQueryKeyNorm = "use_qk_norm"
        case normalizesExpertWeights = "norm_topk_prob"
        case activation = "hidden_act"
        case tiesEmbedding = "tie_word_embeddings"
        case attentionBias = "attention_bias"
        case temperatureTuning = "attn_temperature_tuning"
        case expertLayerStep = "interleave_moe_layer_step"
        case ropeLayers = "no_rope_layers"
    }

    /// Throws for sizes that do not go together and for what this model does not compute.
    public func validateModelConfiguration() throws {
        func check(_ holds: Bool, _ what: String) throws {
            guard holds else { throw MobileMoEMLXError("config.json: \(what).") }
        }
        try check(modelType == "mobilemoe", "model_type is '\(modelType)', not 'mobilemoe'")
        let sizes = [
            "vocab_size": vocabularySize, "hidden_size": hiddenSize, "num_hidden_layers": layers,
            "num_attention_heads": attentionHeads, "num_key_value_heads": keyValueHeads,
            "head_dim": headDim, "intermediate_size": expertWidth,
            "intermediate_size_mlp": sharedExpertWidth, "num_local_experts": experts,
            "num_experts_per_tok": expertsPerToken, "max_position_embeddings": context,
        ]
        for (name, size) in sizes.sorted(by: { $0.key < $1.key }) {
            try check(size > 0, "\(name) is \(size); a size is above 0")
        }
        try check(
            attentionHeads % keyValueHeads == 0,
            "num_attention_heads is \(attentionHeads), no multiple of num_key_value_heads")
        try check(headDim % 2 == 0, "head_dim is \(headDim), which RoPE cannot rotate in pairs")
        try check(expertsPerToken <= experts, "num_experts_per_tok is above num_local_experts")
        try check(activation ?? "silu" == "silu", "hidden_act is not 'silu'")
        try check(tiesEmbedding ?? true, "tie_word_embeddings is false")
        try check(!(attentionBias ?? false), "attention_bias is true")
        try check(!(temperatureTuning ?? false), "attn_temperature_tuning is true")
        try check(expertLayerStep ?? 1 == 1, "interleave_moe_layer_step is not 1")
        try check(ropeLayers?.allSatisfy { $0 == 1 } ?? true, "no_rope_layers has layers without RoPE")
        if let ropeScaling {
            let type = ropeScaling.type
            try check(["llama3", "default"].contains(type), "rope_scaling has the type '\(type)'")
            try check(
                type == "default" || (ropeScaling.factor != nil && ropeScaling.originalContext != nil),
                "rope_scaling has no factor or no original_max_position_embeddings")
        }
    }

    /// The period / 2 pi of each rotated pair, after the llama3 stretching.
    var ropePeriods: [Float] {
        stride(from: 0, to: headDim, by: 2).map { place in
            let period = pow(ropeTheta, Double(place) / Double(headDim))
            guard let scaling = ropeScaling, scaling.type == "llama3", let factor = scaling.factor,
                let original = scaling.originalContext
            else { return Float(period) }
            let turns = original / (2 * .pi * period)
            let low = scaling.lowFrequencyFactor ?? 1
            let high = scaling.highFrequencyFactor ?? 1
            // With low == high (the published files) the blend between them has no width.
            let blend = high > low ? (turns - low) / (high - low) : turns >= low ? 1 : 0
            let kept = min(max(blend, 0), 1)  // 0: divide the frequency by factor, 1: keep it
            return Float(1 / ((1 - kept) / (period * factor) + kept / period))
        }
    }
}

/// What went wrong, as one sentence for a person.
public struct MobileMoEMLXError: Error, Equatable, Sendable, CustomStringConvertible, LocalizedError {
    public let sentence: String

    init(_ sentence: String) { self.sentence = sentence }

    public var description: String { sentence }
    public var errorDescription: String? { sentence }
}
