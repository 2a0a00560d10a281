import Foundation

/// What running a checkpoint takes at most, known before its weights are read.
public struct MemoryEstimate: Sendable, Equatable {
    /// Weights in the memory map of the files, or kept of those that are read when they are needed.
    public let weights: Int
    /// Keys and values of a full context.
    public let cache: Int
    /// Scratch of a forward pass, and scores.
    public let working: Int
    /// What the system can give this process now; nil where it does not tell.
    public let available: Int?

    public var total: Int { weights + cache + working }
    public var fits: Bool { available.map { total <= $0 } ?? true }
}

extension CPUEngine {
    /// What `init` with the same arguments would need; throws for all that is wrong with the
    /// checkpoint's headers.
    public static func memoryEstimate(
        folder: URL, options: CPUOptions = CPUOptions()
    ) throws -> MemoryEstimate {
        try memoryEstimate(Checkpoint(folder), options)
    }

    static func memoryEstimate(
        _ checkpoint: Checkpoint, _ options: CPUOptions
    ) throws -> MemoryEstimate {
        let model = checkpoint.configuration
        let context = try options.context(of: model)
        let perHead =
            switch options.cacheType {
            case .float32: model.headDim * 4
            case .float16: model.headDim * 2
            case .int8: model.headDim + 4  // a float32 scale
            }
        let cache = product(2, model.layerCount, model.keyValueHeads, perHead, context)
        var weights = checkpoint.tensors.values.reduce(0) { $0 + $1.byteCount }
        if let budget = options.expertMemory {
            let experts = (0..<model.layerCount).flatMap { TensorNames.packedExperts($0) }
            let bytes = experts.flatMap { [$0.codes, $0.scales] }.reduce(0) {
                $0 + (checkpoint.tensors[$1]?.byteCount ?? 0)
            }
            weights += min(budget, bytes) - bytes
        }
        return MemoryEstimate(
            weights: weights, cache: cache, working: working(model, options, context),
            available: options.memoryLimit ?? availableMemory())
    }

    /// The arrays of a forward pass of one block of tokens, after the kernel's own list of them, and
    /// the scores of one token.
    private static func working(
        _ model: ModelConfiguration, _ options: CPUOptions, _ context: Int
    ) -> Int {
        let slots = model.expertsPerToken
        // Floats of a token: residual stream, its norms and rounded copies; queries, keys, values
        // and what attention mixes; the shared expert's two halves and their rounded product; each
        // chosen expert's halves, rounded product and output.
        let perToken =
            5 * model.hiddenSize + 2 * (model.queryDim + model.keyValueDim)
            + 3 * model.sharedExpertWidth + model.expertCount
            + slots * (3 * model.expertWidth + model.hiddenSize + 8)
        let block = min(CPUSession.block, context)
        let angles = context * model.headDim
        let perThread = 64 * max(model.hiddenSize, model.sharedExpertWidth, model.queryDim)
        return 4 * (perToken * block + angles + options.threadCount * perThread + model.vocabularySize)
    }

    /// Throws where what is needed is more than there is, with what would help.
    static func checkMemory(_ checkpoint: Checkpoint, _ options: CPUOptions) throws {
        let estimate = try memoryEstimate(checkpoint, options)
        guard !estimate.fits, let available = estimate.available else { return }
        var ways: [String] = []
        if estimate.weights + estimate.working < available, estimate.cache > 0 {
            let model = checkpoint.configuration
            let fitting = (available - estimate.weights - estimate.working)
                / (estimate.cache / (try options.context(of: model)))
            if fitting > 0 { ways.append("a context of at most \(fitting) tokens") }
        }
        if options.expertMemory == nil {
            ways.append("\(options.expertMemoryName), which reads experts when they are needed")
        }
        if options.cacheType != .int8 { ways.append("an int8 cache") }
        ways.append("a smaller model")
        throw MobileMoEError(
            .memory,
            "\(checkpoint.folder) needs about \(bytesText(estimate.total)) of memory (weights "
                + "\(bytesText(estimate.weights)), cache \(bytesText(estimate.cache)), work "
                + "\(bytesText(estimate.working))), and \(bytesText(available)) can be had. Choose "
                + "\(ways.joined(separator: ", or ")).")
    }
}

private func product(_ factors: Int...) -> Int {
    factors.reduce(1) { $0.multipliedReportingOverflow(by: $1).partialValue }
}

/// Bytes in decimal units.
package func bytesText(_ count: Int) -> String {
    for (unit, factor, digits) in [("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)]
    where Double(count) >= factor {
        return "\(fixed(Double(count) / factor, digits)) \(unit)"
    }
    return "\(count) B"
}

package func fixed(_ number: Double, _ digits: Int) -> String {
    String(format: "%.\(digits)f", number)
}
