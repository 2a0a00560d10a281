import MLX
import MLXLLM
import MLXLMCommon
import MLXNN

/// A norm whose weight may be stored in another type than x's.
final class Norm: Module, UnaryLayer {
    @ParameterInfo(key: "weight") var weight: MLXArray
    private let epsilon: Float

    init(_ size: Int, _ epsilon: Float) {
        self.epsilon = epsilon
        _weight.wrappedValue = MLXArray.ones([size])
    }

    func callAsFunction(_ x: MLXArray) -> MLXArray {
        MLXFast.rmsNorm(x, weight: weight.asType(x.dtype), eps: epsilon)
    }
}

/// RoPE on adjacent pairs, with the periods of the configuration.
final class Rotation: Module, OffsetLayer, ArrayOffsetLayer {
    private let dimensions: Int
    private let _periods: MLXArray  // no parameter, as its name says

    init(_ configuration: MobileMoEConfiguration) {
        dimensions = configuration.headDim
        _periods = MLXArray(configuration.ropePeriods)
    }

    func callAsFunction(_ x: MLXArray, offset: Int) -> MLXArray {
        MLXFast.RoPE(
            x, dimensions: dimensions, traditional: true, base: nil, scale: 1, offset: offset,
            freqs: _periods)
    }

    func callAsFunction(_ x: MLXArray, offset: MLXArray) -> MLXArray {
        MLXFast.RoPE(
            x, dimensions: dimensions, traditional: true, base: nil, scale: 1, offset: offset,
            freqs: _periods)
    }
}

/// Grouped-query attention: RoPE, then a norm of queries and keys that has no weight.
final class Attention: Module {
    @ModuleInfo(key: "q_proj") var q: Linear
    @ModuleInfo(key: "k_proj") var k: Linear
    @ModuleInfo(key: "v_proj") var v: Linear
    @ModuleInfo(key: "o_proj") var o: Linear
    private let configuration: MobileMoEConfiguration
    private let rotation: Rotation

    init(_ configuration: MobileMoEConfiguration) {
        self.configuration = configuration
        rotation = Rotation(configuration)
        let hidden = configuration.hiddenSize
        let queries = configuration.attentionHeads * configuration.headDim
        let keys = configuration.keyValueHeads * configuration.headDim
        _q.wrappedValue = Linear(hidden, queries, bias: false)
        _k.wrappedValue = Linear(hidden, keys, bias: false)
        _v.wrappedValue = Linear(hidden, keys, bias: false)
        _o.wrappedValue = Linear(queries, hidden, bias: false)
    }

    func callAsFunction(
        _ x: MLXArray, mask: MLXFast.ScaledDotProductAttentionMaskMode, cache: KVCache?
    ) -> MLXArray {
        let (batch, length) = (x.dim(0), x.dim(1))
        func heads(_ y: MLXArray) -> MLXArray {
            y.reshaped(batch, length, -1, configuration.headDim).transposed(0, 2, 1, 3)
        }
        let offset = cache?.ropeOffset
        let output = attentionWithCacheUpdate(
            queries: normed(applyRotaryPosition(rotation, to: heads(q(x)), offset: offset)),
            keys: normed(applyRotaryPosition(rotation, to: heads(k(x)), offset: offset)),
            values: heads(v(x)), cache: cache, scale: 1 / Float(configuration.headDim).squareRoot(),
            mask: mask)
        return o(output.transposed(0, 2, 1, 3).reshaped(batch, length, -1))
    }

    private func normed(_ x: MLXArray) -> MLXArray {
        guard configuration.usesQueryKeyNorm ?? true else { return x }
        let ones = MLXArray.ones([configuration.headDim], dtype: x.dtype)
        return MLXFast.rmsNorm(x, weight: ones, eps: configuration.normEpsilon)
    }
}

/// The experts of each token, by sigmoid scores in float32: chosen by the biased score, weighted by
/// the plain one.
final class Router: Module {
    @ParameterInfo(key: "weight") var weight: MLXArray
    private let configuration: MobileMoEConfiguration

    init(_ configuration: MobileMoEConfiguration) {
        self.configuration = configuration
        _weight.wrappedValue = MLXArray.zeros([configuration.experts, configuration.hiddenSize])
    }

    /// x [tokens, hidden], bias [experts] -> experts and weights [tokens, chosen].
    func callAsFunction(_ x: MLXArray, bias: MLXArray) -> (experts: MLXArray, weights: MLXArray) {
        let scores = sigmoid(matmul(x.asType(.float32), weight.asType(.float32).T))
        // A stable sort: of equal scores the lower index comes first.
        let order = argSort(-(scores + bias.asType(.float32)), axis: -1)
        let experts = order[0..., ..<configuration.expertsPerToken]
        var weights = takeAlong(scores, experts, axis: -1)
        if configuration.normalizesExpertWeights ?? true {
            weights = weights / (weights.sum(axis: -1, keepDims: true) + 1e-20)
        }
        return (experts, weights * configuration.routedScalingFactor)
    }
}

final class SharedExpert: Module {
    @ModuleInfo(key: "gate_proj") var gate: Linear
    @ModuleInfo(key: "up_proj") var up: Linear
    @ModuleInfo(key: "down_proj") var down: Linear

    init(_ configuration: MobileMoEConfiguration) {
        let (hidden, width) = (configuration.hiddenSize, configuration.sharedExpertWidth)
        _gate.wrappedValue = Linear(hidden, width, bias: false)
        _up.wrappedValue = Linear(hidden, width, bias: false)
        _down.wrappedValue = Linear(width, hidden, bias: false)
    }

    func callAsFunction(_ x: MLXArray) -> MLXArray { down(silu(gate(x)) * up(x)) }
}

/// The weighted sum of the chosen experts, and the shared one.
final class MixtureOfExperts: Module {
    @ModuleInfo(key: "router") var router: Router
    @ParameterInfo(key: "expert_bias") var expertBias: MLXArray
    @ModuleInfo(key: "experts") var experts: Experts
    @ModuleInfo(key: "shared_expert") var shared: SharedExpert

    init(_ configuration: MobileMoEConfiguration) {
        _router.wrappedValue = Router(configuration)
        _expertBias.wrappedValue = MLXArray.zeros([configuration.experts])
        _experts.wrappedValue = Experts(configuration)
        _shared.wrappedValue = SharedExpert(configuration)
    }

    func callAsFunction(_ x: MLXArray) -> MLXArray {
        let rows = x.flattened(start: 0, end: -2)
        let (indices, weights) = router(rows, bias: expertBias)
        let results = experts(rows, indices)
        let routed = (results * expandedDimensions(weights.asType(results.dtype), axis: -1)).sum(axis: -2)
        return routed.reshaped(x.shape) + shared(x)
    }
}

final class DecoderLayer: Module {
    @ModuleInfo(key: "self_attn") var attention: Attention
    @ModuleInfo(key: "feed_forward") var feedForward: MixtureOfExperts
    @ModuleInfo(key: "input_layernorm") var inputNorm: Norm
    @ModuleInfo(key: "post_attention_layernorm") var postAttentionNorm: Norm

    init(_ configuration: MobileMoEConfiguration) {
        _attention.wrappedValue = Attention(configuration)
        _feedForward.wrappedValue = MixtureOfExperts(configuration)
        _inputNorm.wrappedValue = Norm(configuration.hiddenSize, configuration.normEpsilon)
        _postAttentionNorm.wrappedValue = Norm(configuration.hiddenSize, configuration.normEpsilon)
    }

    func callAsFunction(
        _ x: MLXArray, mask: MLXFast.ScaledDotProductAttentionMaskMode, cache: KVCache?
    ) -> MLXArray {
        let h = x + attention(inputNorm(x), mask: mask, cache: cache)
        return h + feedForward(postAttentionNorm(h))
    }
}

final class Decoder: Module {
    @ModuleInfo(key: "embed_tokens") var embedding: Embedding
    @ModuleInfo(key: "layers") var layers: [DecoderLayer]
    @ModuleInfo(key: "norm") var norm: Norm

    init(_ configuration: MobileMoEConfiguration) {
        _embedding.wrappedValue = Embedding(
            embeddingCount: configuration.vocabularySize, dimensions: configuration.hiddenSize)
        _layers.wrappedValue = (0..<configuration.layers).map { _ in DecoderLayer(configuration) }
        _norm.wrappedValue = Norm(configuration.hiddenSize, configuration.normEpsilon)
    }

    func callAsFunction(_ tokens: MLXArray, cache: [KVCache]?, type: DType?) -> MLXArray {
        var h = embedded(tokens, type)
        let mask = createAttentionMask(h: h, cache: cache?.first)
        for (number, layer) in layers.enumerated() {
            h = layer(h, mask: mask, cache: cache?[number])
        }
        return norm(h)
    }

    private func embedded(_ tokens: MLXArray, _ type: DType?) -> MLXArray {
        guard let quantized = embedding as? QuantizedEmbedding else {
            let rows = embedding(tokens)
            return type.map { rows.asType($0) } ?? rows
        }
        // In float32: code x scale + bias in the scales' own float16 would round.
        let rows = dequantized(
            quantized.weight[tokens], scales: quantized.scales[tokens].asType(.float32),
            biases: quantized.biases?[tokens].asType(.float32), groupSize: quantized.groupSize,
            bits: quantized.bits, mode: quantized.mode)
        return rows.asType(type ?? quantized.scales.dtype)
    }
}

/// MobileMoE for mlx-swift-lm: its generation, caches, chat sessions and adapters work on it.
public final class MobileMoEMLXModel: Module, LLMModel, KVCacheDimensionProvider {
    public let configuration: MobileMoEConfiguration
    public let vocabularySize: Int
    public let kvHeads: [Int]
    /// The type of what is computed; nil is the type that the weights have: float16 for INT4,
    /// bfloat16 for BF16.
    public var computeType: DType?
    @ModuleInfo(key: "model") var model: Decoder

    public init(_ configuration: MobileMoEConfiguration) {
        self.configuration = configuration
        vocabularySize = configuration.vocabularySize
        kvHeads = Array(repeating: configuration.keyValueHeads, count: configuration.layers)
        _model.wrappedValue = Decoder(configuration)
    }

    public func callAsFunction(_ inputs: MLXArray, cache: [KVCache]?) -> MLXArray {
        model.embedding.asLinear(model(inputs, cache: cache, type: computeType))
    }

    /// mlx-swift-lm's own adapters take the linear layers of these; ours, with experts, are loaded by
    /// `MobileMoEAdapter`.
    public var loraLayers: [Module] { model.layers }

    public func sanitize(weights: [String: MLXArray]) -> [String: MLXArray] {
        publishedToMLX(weights)
    }
}
