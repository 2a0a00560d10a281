import Foundation
import MobileMoEKernel

/// A published INT4 checkpoint on the CPU kernel: the weights stay in the memory map of their files.
public final class CPUEngine: Engine {
    public let configuration: ModelConfiguration
    public let options: CPUOptions
    public let endOfAnswer: Set<Int>
    /// Tokens of a session: the options' context, or the model's.
    let context: Int
    let weights: KernelWeights
    private let folder: String
    private let model: KernelModel

    /// Opens the checkpoint in `folder`. Blocks while scales are read and checked: call it off the
    /// main thread, or use `MobileMoEModel`.
    ///
    /// Throws MobileMoEError for all that is wrong with the folder or an option, and where the
    /// memory does not suffice.
    public init(folder: URL, options: CPUOptions = CPUOptions()) throws {
        try options.check()
        let checkpoint = try Checkpoint(folder)
        let configuration = checkpoint.configuration
        if options.expertMemory != nil, configuration.expertCount == 0 {
            throw MobileMoEError(
                .input,
                "\(checkpoint.folder) is a dense model, without experts to be read when they are needed: "
                    + "leave out the memory for experts.")
        }
        context = try options.context(of: configuration)
        try Self.checkMemory(checkpoint, options)
        try checkpoint.checkValues()
        self.configuration = configuration
        self.options = options
        self.folder = checkpoint.folder
        endOfAnswer = try checkpoint.endOfAnswer()
        let weights = try KernelWeights(checkpoint, expertsToo: options.expertMemory == nil)
        self.weights = weights
        do {
            let runtime = try KernelRuntime(
                precision: options.precision.kernelValue, threads: options.threadCount,
                cpuPath: options.cpuPath)
            model = try configuration.withKernelConfig { config in
                try Self.model(runtime, &config, weights, checkpoint, options.expertMemory)
            }
        } catch let error as MobileMoEError {
            throw MobileMoEError(
                error.kind, "\(checkpoint.folder) cannot run on the CPU engine: \(error.sentence)")
        }
    }

    private static func model(
        _ runtime: KernelRuntime, _ config: inout mobilemoe_config, _ weights: KernelWeights,
        _ checkpoint: Checkpoint, _ expertMemory: Int?
    ) throws -> KernelModel {
        var keep: [any Sendable] = Array(weights.maps.values)
        var source: mobilemoe_expert_source?
        if let expertMemory {
            let layers = try (0..<checkpoint.configuration.layerCount).map { layer in
                try TensorNames.packedExperts(layer).flatMap { [$0.codes, $0.scales] }.map {
                    guard let tensor = checkpoint.tensors[$0] else {
                        throw MobileMoEError(.checkpoint, "'\($0)' is missing.")
                    }
                    return tensor
                }
            }
            let files = try KernelExpertFiles(&config, layers)
            keep.append(files)
            source = files.source(memory: expertMemory)
        }
        let layers = weights.layers(checkpoint.configuration)
        return try layers.withUnsafeBufferPointer { layers in
            var table = mobilemoe_weights()
            table.embed_tokens = weights.linear(TensorNames.embedding)
            table.norm = weights.tensor(TensorNames.norm)
            table.layers = layers.baseAddress
            guard var source else {
                return try KernelModel(runtime, &config, &table, keep: keep)
            }
            return try withUnsafePointer(to: &source) {
                table.expert_source = $0
                return try KernelModel(runtime, &config, &table, keep: keep)
            }
        }
    }

    public var vocabularySize: Int { configuration.vocabularySize }

    public var summary: String {
        let count = options.threadCount
        let threads = count == 1 ? "1 thread" : "\(count) threads"
        var experts = ""
        if options.expertMemory != nil {
            let total = configuration.layerCount * configuration.expertCount
            experts = " and memory for \(model.expertCounters.held) of \(total) experts"
        }
        return "a model of \(configuration.layerCount) layers x \(configuration.hiddenSize) in INT4, "
            + "\(bytesText(weights.byteCount))\(experts), on the CPU (\(model.runtime.cpuPath), "
            + "\(threads), \(options.precision.rawValue))"
    }

    /// What was read of experts since the checkpoint was opened; nil where all are mapped. An expert
    /// counts once for each time that a layer computes with it.
    public var expertReads: ExpertReads? {
        guard options.expertMemory != nil else { return nil }
        let counters = model.expertCounters
        return ExpertReads(
            hits: Int(counters.hits), misses: Int(counters.misses),
            bytesRead: Int(counters.bytes_read))
    }

    public struct ExpertReads: Sendable, Equatable {
        public let hits, misses, bytesRead: Int
    }

    public func makeSession() throws -> any ModelSession { try session() }

    /// A new session, with room for `context` tokens (nil: the engine's); memory for them is used as
    /// it fills.
    public func session(context: Int? = nil) throws -> CPUSession {
        let room = context ?? self.context
        guard (1...configuration.context).contains(room) else {
            throw MobileMoEError(
                .input,
                "A context of \(room) tokens: this model takes 1 to \(configuration.context).")
        }
        return try CPUSession(
            KernelSession(
                model, context: room, cache: options.cacheType.kernelValue, block: CPUSession.block),
            weights: weights, configuration: configuration, context: room, folder: folder)
    }
}

extension CPUOptions.Precision {
    package var kernelValue: mobilemoe_precision {
        switch self {
        case .exact: MOBILEMOE_EXACT
        case .int16: MOBILEMOE_INT16
        case .int8: MOBILEMOE_INT8
        }
    }
}

extension CPUOptions.CacheType {
    var kernelValue: mobilemoe_cache_type {
        switch self {
        case .float32: MOBILEMOE_CACHE_FLOAT32
        case .float16: MOBILEMOE_CACHE_FLOAT16
        case .int8: MOBILEMOE_CACHE_INT8
        }
    }
}
