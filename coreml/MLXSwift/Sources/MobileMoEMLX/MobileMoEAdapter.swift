import Foundation
import MLX
import MLXLMCommon
import MLXNN

/// An adapter that `mobilemoe finetune` left, or mlx-lm: of linear layers and of routed experts.
///
/// mlx-swift-lm's `LoRAContainer` knows linear layers alone. What neither has a place for is refused
/// by name, and `mobilemoe fuse` writes it into the checkpoint.
public struct MobileMoEAdapter: ModelAdapter, @unchecked Sendable {
    /// Evaluated, and never changed.
    private let tensors: [String: MLXArray]
    private let paths: [String]
    private let rank: Int
    private let scale: Float

    private struct Settings: Decodable {
        let kind: String?
        let parameters: Parameters
        let own: Own?

        struct Parameters: Decodable {
            let scale: Float
        }

        struct Own: Decodable {
            let throughInt4: Bool?

            enum CodingKeys: String, CodingKey { case throughInt4 = "through_int4" }
        }

        enum CodingKeys: String, CodingKey {
            case kind = "fine_tune_type"
            case parameters = "lora_parameters"
            case own = "mobilemoe"
        }
    }

    /// Reads the adapter in `folder`.
    public init(folder: URL) throws {
        let configuration = folder.appendingPathComponent("adapter_config.json")
        let settings: Settings
        do {
            settings = try JSONDecoder().decode(Settings.self, from: Data(contentsOf: configuration))
        } catch {
            throw MobileMoEMLXError("\(configuration.path) describes no adapter: \(error).")
        }
        func refuse(_ what: String) -> MobileMoEMLXError {
            MobileMoEMLXError(
                "The adapter \(folder.path) \(what). Fuse it with its checkpoint first "
                    + "(`mobilemoe fuse`), and load the result.")
        }
        guard settings.kind ?? "lora" == "lora" else { throw refuse("is of the kind \(settings.kind!)") }
        guard !(settings.own?.throughInt4 ?? false) else {
            throw refuse("was trained through INT4, and beside its base it would not be rounded")
        }
        let file = folder.appendingPathComponent("adapters.safetensors")
        let tensors: [String: MLXArray]
        do {
            tensors = try loadArrays(url: file)
        } catch {
            throw MobileMoEMLXError("\(file.path) cannot be read: \(error).")
        }
        let paths = tensors.keys.filter { $0.hasSuffix(".lora_a") }.map { String($0.dropLast(7)) }.sorted()
        let parts = Set(paths.flatMap { ["\($0).lora_a", "\($0).lora_b"] })
        for name in tensors.keys.sorted() where !parts.contains(name) {
            guard name.hasSuffix(".expert_bias") else { throw refuse("has the tensor \(name)") }
        }
        guard let first = paths.first, let matrix = tensors["\(first).lora_a"] else {
            throw MobileMoEMLXError("\(file.path) has no adapter of any module.")
        }
        for path in paths where tensors["\(path).lora_b"] == nil {
            throw MobileMoEMLXError("\(file.path) has \(path).lora_a but no \(path).lora_b.")
        }
        eval(Array(tensors.values))
        self.tensors = tensors
        self.paths = paths
        rank = matrix.dim(-1)
        scale = settings.parameters.scale
    }

    /// Adds the adapter to a model. Throws, with the model as it was, for one of another base.
    public func load(into model: LanguageModel) throws {
        let modules = Dictionary(uniqueKeysWithValues: model.namedModules())
        var layers: [(String, Module)] = []
        for path in paths {
            switch modules[path] {
            case let linear as Linear where !(linear is LoRALayer):
                layers.append((path, AdaptedLinear(linear, rank: rank, scale: scale)))
            case let experts as ExpertProduct where !(experts is LoRALayer):
                layers.append((path, LoRAExperts(experts, rank: rank, scale: scale)))
            case nil: throw MobileMoEMLXError("The adapter is for another model: this has no \(path).")
            case .some(let other):
                throw MobileMoEMLXError(
                    "\(path) cannot be adapted here (\(type(of: other))): fuse the adapter with its "
                        + "checkpoint first (`mobilemoe fuse`), and load the result.")
            }
        }
        let current = Dictionary(uniqueKeysWithValues: model.parameters().flattened())
        let expected = Dictionary(
            uniqueKeysWithValues: layers.flatMap { path, layer in
                layer.parameters().flattened().map { ("\(path).\($0.0)", $0.1.shape) }
            })
        for (name, tensor) in tensors.sorted(by: { $0.key < $1.key }) {
            guard let shape = expected[name] ?? current[name]?.shape, shape == tensor.shape else {
                throw MobileMoEMLXError(
                    "The adapter is for another model: \(name) has the shape \(tensor.shape), and this "
                        + "model needs \(expected[name] ?? current[name]?.shape ?? []).")
            }
        }
        model.update(modules: ModuleChildren.unflattened(layers))
        try model.update(parameters: ModuleParameters.unflattened(tensors), verify: [.noUnusedKeys])
        model.train(false)
    }

    /// Makes the adapter part of the weights. INT4 stays INT4, by MLX's rounding, which loses small
    /// updates: `mobilemoe fuse` says how much, and writes a checkpoint.
    public func fuse(with model: LanguageModel) throws {
        try load(into: model)
        replace(in: model) { $0.fused() }
    }

    /// Takes the adapter away again. Selection biases that it moved stay moved.
    public func unload(from model: LanguageModel) {
        replace(in: model) { $0.reverted() }
    }

    private func replace(in model: LanguageModel, _ change: (LoRALayer) -> Module) {
        let modules = Dictionary(uniqueKeysWithValues: model.namedModules())
        let layers = paths.compactMap { path in
            (modules[path] as? LoRALayer).map { (path, change($0)) }
        }
        model.update(modules: ModuleChildren.unflattened(layers))
    }
}

/// A linear layer with an adapter: + scale x (x @ lora_a) @ lora_b, lora_a [in, rank], lora_b
/// [rank, out].
///
/// mlx-swift-lm's own rounds x to the type of the scales, float16, also where all else is float32.
public final class AdaptedLinear: Linear, LoRALayer {
    @ModuleInfo(key: "linear") var linear: Linear
    @ParameterInfo(key: "lora_a") var a: MLXArray
    @ParameterInfo(key: "lora_b") var b: MLXArray
    public var loraEnabled = true
    private let scale: Float

    init(_ linear: Linear, rank: Int, scale: Float) {
        self.scale = scale
        let (outputs, inputs) = linear.shape
        _linear.wrappedValue = linear
        let bound = 1 / Float(inputs).squareRoot()
        _a.wrappedValue = MLXRandom.uniform(low: -bound, high: bound, [inputs, rank])
        _b.wrappedValue = MLXArray.zeros([rank, outputs])
        super.init(weight: linear.weight)
    }

    public override var shape: (Int, Int) { linear.shape }

    public override func callAsFunction(_ x: MLXArray) -> MLXArray {
        let y = linear(x)
        guard loraEnabled else { return y }
        return y + matmul(matmul(x, a.asType(x.dtype)), (scale * b).asType(x.dtype))
    }

    public func fused() -> Module {
        let update = scale * matmul(a, b).T
        guard let quantized = linear as? QuantizedLinear else {
            return Linear(weight: (linear.weight.asType(.float32) + update).asType(linear.weight.dtype))
        }
        let matrix = dequantized(
            quantized.weight, scales: quantized.scales.asType(.float32),
            biases: quantized.biases?.asType(.float32), groupSize: quantized.groupSize,
            bits: quantized.bits, mode: quantized.mode)
        return QuantizedLinear(
            weight: (matrix + update).asType(quantized.scales.dtype), bias: nil,
            groupSize: quantized.groupSize, bits: quantized.bits, mode: quantized.mode)
    }

    public func reverted() -> Module { linear }
}

/// Experts with an adapter each: + scale x (x @ lora_a) @ lora_b of the same expert, lora_a
/// [experts, in, rank], lora_b [experts, rank, out].
public final class LoRAExperts: ExpertProduct, LoRALayer {
    @ModuleInfo(key: "linear") var linear: ExpertProduct
    @ParameterInfo(key: "lora_a") var a: MLXArray
    @ParameterInfo(key: "lora_b") var b: MLXArray
    public var loraEnabled = true
    private let scale: Float

    init(_ linear: ExpertProduct, rank: Int, scale: Float) {
        self.scale = scale
        let shape = linear.matrices.shape
        _linear.wrappedValue = linear
        let bound = 1 / Float(shape[1]).squareRoot()
        _a.wrappedValue = MLXRandom.uniform(low: -bound, high: bound, [shape[0], shape[1], rank])
        _b.wrappedValue = MLXArray.zeros([shape[0], rank, shape[2]])
    }

    override func callAsFunction(_ x: MLXArray, _ indices: MLXArray, sorted: Bool) -> MLXArray {
        let y = linear(x, indices, sorted: sorted)
        guard loraEnabled else { return y }
        let inner = gatherMM(x, a.asType(x.dtype), rhsIndices: indices, sortedIndices: sorted)
        let outer = (scale * b).asType(x.dtype)
        return y + gatherMM(inner, outer, rhsIndices: indices, sortedIndices: sorted)
    }

    override var matrices: MLXArray { linear.matrices + scale * matmul(a, b) }

    public func fused() -> Module {
        guard let quantized = linear as? QuantizedExpertLinear else {
            return ExpertLinear(weight: matrices.asType((linear as! ExpertLinear).weight.dtype))
        }
        return QuantizedExpertLinear(
            ExpertLinear(weight: matrices.asType(quantized.scales.dtype)),
            groupSize: quantized.groupSize, bits: quantized.bits, mode: quantized.mode)
    }

    public func reverted() -> Module { linear }
}
