import Foundation

/// The sizes and constants of a checkpoint's config.json, under the names that it has there.
public struct ModelConfiguration: Sendable, Equatable {
    public let hiddenSize: Int
    public let layerCount: Int  // num_hidden_layers
    public let attentionHeads: Int
    public let keyValueHeads: Int
    public let headDim: Int
    public let expertWidth: Int  // intermediate_size: of one routed expert
    public let sharedExpertWidth: Int  // intermediate_size_mlp
    public let expertCount: Int  // num_local_experts
    public let expertsPerToken: Int
    public let vocabularySize: Int
    /// The most tokens of prompt and answer together: max_position_embeddings.
    public let context: Int
    public let routedScalingFactor: Double
    public let normalizesExpertWeights: Bool  // norm_topk_prob
    public let usesQueryKeyNorm: Bool
    public let normEpsilon: Double
    public let ropeTheta: Double
    public let ropeScaling: RopeScaling?  // nil: none
    public let beginning: Int?  // bos_token_id
    public let endOfAnswer: [Int]  // eos_token_id
    /// Whether config.json has the block of published INT4.
    public let isQuantized: Bool

    /// How long wavelengths of RoPE are stretched: rope_scaling of the type llama3.
    public struct RopeScaling: Sendable, Equatable {
        public let factor: Double
        public let originalContext: Double  // original_max_position_embeddings
        public let lowFrequencyFactor: Double
        public let highFrequencyFactor: Double
    }
}

extension ModelConfiguration {
    static let modelType = "mobilemoe"
    static let int4Format = "mobilemoe-int4-g32"
    static let groupSize = 32

    /// Far above any decoder: a damaged number would fill the memory with lists of layers.
    private static let mostLayers = 1000

    private static let required = [
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "intermediate_size_mlp", "num_key_value_heads", "head_dim", "vocab_size",
        "num_local_experts", "num_experts_per_tok", "routed_scaling_factor", "rms_norm_eps",
        "rope_theta", "max_position_embeddings", "model_type",
    ]
    private static let optional: Set<String> = [
        "rope_scaling", "no_rope_layers", "layer_types", "bos_token_id", "eos_token_id",
        "hidden_act", "interleave_moe_layer_step", "attn_temperature_tuning",
        "tie_word_embeddings", "attention_bias", "attention_dropout", "torch_dtype",
        "norm_topk_prob", "use_qk_norm",
    ]

    /// config.json of the checkpoint in `folder`.
    public init(folder: URL) throws {
        self = try Self.read(folder.path)
    }

    static func read(_ folder: String) throws -> ModelConfiguration {
        let path = folder + "/config.json"
        guard fileKind(path) != .nothing else {
            throw MobileMoEError(.checkpoint, "\(folder) has no config.json: is it a model folder?")
        }
        guard let config = try readJSON(path).object else {
            throw MobileMoEError(.checkpoint, "\(path): it is not a JSON object.")
        }
        return try ModelConfiguration(config)
    }

    /// Throws naming the field and the value for anything that is missing, unknown, of the wrong
    /// type, contradictory, or not a MobileMoE.
    init(_ config: JSON.Object) throws {
        guard config["model_type"]?.string == Self.modelType else {
            throw bad(
                "model_type", config["model_type"] ?? .null,
                "only '\(Self.modelType)' is supported: this is not a MobileMoE checkpoint")
        }
        let known = Self.optional.union(Self.required)
        let values = try ConfigSpelling.publishedFields(config, known: known)
        let missing = Self.required.filter { values[$0] == nil }
        if let first = missing.first {
            let unknown = config.entries.map(\.key).filter { !known.contains($0) }
            let rest = missing.dropFirst().joined(separator: ", ")
            throw configError(
                "the field \(first) is missing\(Self.presentInstead(first, unknown))."
                    + (rest.isEmpty ? "" : " Also missing: \(rest)."))
        }
        try ConfigSpelling.checkUnknown(config, known: known)
        let fields = Fields(values: values)
        hiddenSize = try fields.size("hidden_size")
        layerCount = try fields.size("num_hidden_layers")
        attentionHeads = try fields.size("num_attention_heads")
        keyValueHeads = try fields.size("num_key_value_heads")
        headDim = try fields.size("head_dim")
        expertWidth = try fields.size("intermediate_size", least: 0)
        sharedExpertWidth = try fields.size("intermediate_size_mlp", least: 0)
        expertCount = try fields.size("num_local_experts", least: 0)
        expertsPerToken = try fields.size("num_experts_per_tok", least: 0)
        vocabularySize = try fields.size("vocab_size")
        context = try fields.size("max_position_embeddings")
        routedScalingFactor = try fields.positive("routed_scaling_factor")
        normEpsilon = try fields.positive("rms_norm_eps")
        ropeTheta = try fields.positive("rope_theta")
        normalizesExpertWeights = try fields.bool("norm_topk_prob")
        usesQueryKeyNorm = try fields.bool("use_qk_norm")
        let spelling = config["rope_scaling"].map { !$0.isFalsy } ?? false
        ropeScaling = try Self.ropeScaling(
            values["rope_scaling"], block: spelling ? "rope_scaling" : "rope_parameters")
        beginning = try fields.values["bos_token_id"].map {
            guard let id = $0.integer else { throw bad("bos_token_id", $0, "it must be a whole number") }
            return id
        }
        endOfAnswer = try tokenIDs("config.json: eos_token_id", values["eos_token_id"])
        isQuantized = try Self.isQuantized(config["quantization"])
        guard layerCount <= Self.mostLayers else {
            throw bad("num_hidden_layers", .integer(layerCount), "it must be at most \(Self.mostLayers)")
        }
        try checkSupported(fields)
        try checkSizes()
    }

    private func checkSupported(_ fields: Fields) throws {
        for (name, only, why) in [
            ("hidden_act", JSON.string("silu"), "the experts are SwiGLU"),
            (
                "interleave_moe_layer_step", .integer(1),
                "every MobileMoE layer is a mixture of experts"
            ),
            ("attn_temperature_tuning", .bool(false), "MobileMoE does not scale queries by position"),
            ("tie_word_embeddings", .bool(true), "MobileMoE ties the output head to the embedding"),
            ("attention_bias", .bool(false), "MobileMoE's attention has no biases"),
            ("attention_dropout", .number(0), "MobileMoE trains without dropout"),
        ] {
            guard let value = fields.values[name] else { continue }
            let rightType =
                switch (only, value) {
                case (.string, .string), (.bool, .bool), (.integer, .integer), (.number, .integer),
                    (.number, .number):
                    true
                default: false
                }
            guard rightType, value.equals(only) else {
                throw bad(name, value, "only \(only.shown) is supported: \(why)")
            }
        }
        if let type = fields.values["torch_dtype"], type.string == nil {
            throw bad("torch_dtype", type, "it must be a text")
        }
        for (name, only) in [
            ("no_rope_layers", JSON.integer(1)), ("layer_types", .string("full_attention")),
        ] {
            guard let value = fields.values[name] else { continue }
            guard let items = value.array, !items.isEmpty else {
                throw bad(name, value, "it must be a list, one entry for each layer")
            }
            guard items.count == layerCount else {
                throw configError(
                    "\(name) has \(items.count) entries but num_hidden_layers is \(layerCount).")
            }
            for (layer, item) in items.enumerated() {
                guard item.double == only.double, item.string == only.string else {
                    throw bad(
                        "\(name)[\(layer)]", item,
                        "only \(only.shown) is supported: every MobileMoE layer attends in full, "
                            + "with RoPE")
                }
            }
        }
    }

    private func checkSizes() throws {
        guard attentionHeads.isMultiple(of: keyValueHeads) else {
            throw configError(
                "num_attention_heads (\(attentionHeads)) is not a multiple of num_key_value_heads "
                    + "(\(keyValueHeads)).")
        }
        guard headDim.isMultiple(of: 2) else {
            throw bad("head_dim", .integer(headDim), "RoPE turns pairs, so it must be even")
        }
        try checkExperts()
        for (name, size) in [
            ("hidden_size", hiddenSize), ("intermediate_size", expertWidth),
            ("intermediate_size_mlp", sharedExpertWidth),
            ("num_attention_heads x head_dim", queryDim),
        ] {
            guard size.isMultiple(of: Self.groupSize) else {
                throw bad(
                    name, .integer(size), "it must be a multiple of the INT4 group, \(Self.groupSize)")
            }
        }
        if let ropeScaling, ropeScaling.originalContext * ropeScaling.factor < Double(context) {
            throw configError(
                "max_position_embeddings (\(context)) contradicts rope_scaling: "
                    + "\(ropeScaling.originalContext) x \(ropeScaling.factor) positions at most.")
        }
        for (name, ids) in [
            ("bos_token_id", beginning.map { [$0] } ?? []), ("eos_token_id", endOfAnswer),
        ] {
            for id in ids where !(0..<vocabularySize).contains(id) {
                throw bad(name, .integer(id), "the vocabulary has \(vocabularySize) entries")
            }
        }
    }

    /// Beside the published form there are two for comparison: without a shared expert
    /// (intermediate_size_mlp 0), and dense (the three numbers of routed experts 0), where all tokens
    /// pass what is the shared expert elsewhere.
    private func checkExperts() throws {
        let numbers = [("num_experts_per_tok", expertsPerToken), ("intermediate_size", expertWidth)]
        if expertCount == 0 {
            for (name, value) in numbers where value != 0 {
                throw bad(
                    name, .integer(value),
                    "it must be 0 where num_local_experts is 0: the model is dense, of the width "
                        + "intermediate_size_mlp")
            }
            guard sharedExpertWidth > 0 else {
                throw bad("intermediate_size_mlp", .integer(0), "a layer without experts needs a width")
            }
            return
        }
        for (name, value) in numbers where value == 0 {
            throw bad(
                name, .integer(0),
                "it must be 1 or more, or num_local_experts (\(expertCount)) 0 as well")
        }
        guard expertsPerToken <= expertCount else {
            throw configError(
                "num_experts_per_tok (\(expertsPerToken)) is above num_local_experts (\(expertCount)).")
        }
    }

    /// Features of all query heads together.
    var queryDim: Int { attentionHeads * headDim }
    /// Features of all key (or value) heads together.
    var keyValueDim: Int { keyValueHeads * headDim }

    /// Bytes of weights that decoding one token reads: all but the experts that are not selected, the
    /// router in float32; norms and the embedding's one row are left out.
    public var bytesReadPerToken: Int {
        let attention = hiddenSize * (2 * queryDim + 2 * keyValueDim)
        let experts = 3 * hiddenSize * (expertsPerToken * expertWidth + sharedExpertWidth)
        let packed = layerCount * (attention + experts) + vocabularySize * hiddenSize
        return packed * 9 / 16 + layerCount * expertCount * hiddenSize * 4
    }

    private static func presentInstead(_ name: String, _ unknown: [String]) -> String {
        for (other, published) in ConfigSpelling.otherNames.sorted(by: { $0.key < $1.key })
        where published == name && unknown.contains(other) {
            return " (the file has '\(other)', another model's name)"
        }
        return didYouMean(name, unknown, words: "the file has")
    }

    private static func ropeScaling(_ value: JSON?, block: String) throws -> RopeScaling? {
        guard let object = value?.object else { return nil }
        let kind = object["rope_type"] ?? .null
        guard let type = kind.string, ["llama3", "default"].contains(type) else {
            throw configError(
                "\(block).rope_type is \(kind.shown); MobileMoE uses 'llama3' (or 'default' for none).")
        }
        let values = object.entries.filter { $0.key != "rope_type" }
        if type == "default" {
            guard let first = values.map(\.key).min() else { return nil }
            throw configError(
                "\(block).rope_type is 'default', which has no \(first): remove it, or say 'llama3'.")
        }
        let known = [
            "factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings",
        ]
        var numbers: [String: Double] = [:]
        for (name, value) in values {
            guard known.contains(name) else {
                throw configError("\(block).\(name) is not a known field\(didYouMean(name, known)).")
            }
            guard let number = value.double, number.isFinite, number > 0 else {
                throw bad("\(block).\(name)", value, "it must be a positive, finite number")
            }
            numbers[name] = number
        }
        let missing = known.filter { numbers[$0] == nil }
        guard missing.isEmpty else {
            throw configError("\(block) lacks \(missing.joined(separator: ", ")).")
        }
        let scaling = RopeScaling(
            factor: numbers["factor"]!,
            originalContext: numbers["original_max_position_embeddings"]!,
            lowFrequencyFactor: numbers["low_freq_factor"]!,
            highFrequencyFactor: numbers["high_freq_factor"]!)
        guard scaling.highFrequencyFactor >= scaling.lowFrequencyFactor else {
            throw configError(
                "\(block).high_freq_factor (\(scaling.highFrequencyFactor)) is below "
                    + "\(block).low_freq_factor (\(scaling.lowFrequencyFactor)).")
        }
        return scaling
    }

    /// The published block, value by value; of an axis, which is a sentence, the first word counts.
    private static let quantization: [(name: String, only: JSON)] = [
        ("format", .string(int4Format)), ("group_size", .integer(groupSize)),
        ("embedding_group_size", .integer(groupSize)), ("qmin", .integer(-8)),
        ("qmax", .integer(7)), ("symmetric", .bool(true)), ("packed", .bool(true)),
        ("scale_dtype", .string("float16")), ("linear_group_axis", .string("in")),
        ("expert_group_axis", .string("out")),
    ]

    private static func isQuantized(_ value: JSON?) throws -> Bool {
        guard let value, !value.isNull else { return false }
        guard let block = value.object else {
            throw bad("quantization", value, "it must be an object or null")
        }
        if block["format"] == nil, block["bits"]?.equals(.integer(4)) ?? false {
            throw MobileMoEError(
                .checkpoint,
                "config.json describes INT4 in MLX's form, which this package does not read: make a "
                    + "published folder of it with `mobilemoe convert FOLDER OUTPUT`.")
        }
        guard block["format"]?.string == int4Format else {
            throw bad("quantization", value, "only format '\(int4Format)' is supported")
        }
        for (name, value) in block.entries {
            guard let only = quantization.first(where: { $0.name == name })?.only else {
                throw bad("quantization.\(name)", value, "MobileMoE's INT4 has no such field")
            }
            let same =
                name.hasSuffix("_axis")
                ? value.string?.split(separator: " ", omittingEmptySubsequences: false).first.map {
                    JSON.string(String($0)).equals(only)
                } ?? false
                : value.equals(only)
            guard same else {
                throw bad("quantization.\(name)", value, "only \(only.shown) is supported")
            }
        }
        return true
    }
}

/// Fields read by type.
private struct Fields {
    let values: [String: JSON]

    func size(_ name: String, least: Int = 1) throws -> Int {
        let value = values[name]!
        guard let size = value.integer else { throw bad(name, value, "it must be a whole number") }
        guard size >= least else { throw bad(name, value, "it must be at least \(least)") }
        guard size < 1 << 31 else { throw bad(name, value, "it must be below 2^31") }
        return size
    }

    func positive(_ name: String) throws -> Double {
        let value = values[name]!
        guard let number = value.double else { throw bad(name, value, "it must be a number") }
        guard number.isFinite, number > 0 else {
            throw bad(name, value, "it must be a positive, finite number")
        }
        return number
    }

    /// True where the field is absent.
    func bool(_ name: String) throws -> Bool {
        guard let value = values[name] else { return true }
        guard case .bool(let bool) = value else { throw bad(name, value, "it must be true or false") }
        return bool
    }
}

/// An `eos_token_id` of JSON, which is null, an id or a list of ids.
func tokenIDs(_ place: String, _ value: JSON?) throws -> [Int] {
    guard let value, !value.isNull else { return [] }
    return try (value.array ?? [value]).map {
        guard let id = $0.integer else {
            throw MobileMoEError(
                .checkpoint, "\(place) is \($0.shown); token ids are whole numbers.")
        }
        return id
    }
}
