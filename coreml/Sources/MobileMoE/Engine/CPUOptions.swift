import Foundation

/// How the CPU engine computes, and what memory it may use.
public struct CPUOptions: Sendable, Equatable {
    /// Of activations in matrix products; the weights are INT4 in each.
    public enum Precision: String, Sendable, CaseIterable {
        case exact  // float32: the reference
        case int16  // 16 bits for each 32 values: near exact
        case int8  // 8 bits, as the paper's: fastest
    }

    /// Of keys and values.
    public enum CacheType: String, Sendable, CaseIterable {
        case float32, float16, int8
    }

    public var precision: Precision
    /// 1 to 16; nil: one for each fast core. Results do not depend on it.
    public var threads: Int?
    /// Tokens of prompt and answer together; nil: as many as the model takes. The cache grows with it.
    public var context: Int?
    /// Nil: float32 with `exact`, else float16.
    public var cache: CacheType?
    /// Bytes for routed experts, which are then read from the file when they are needed, and those
    /// kept that were used most lately; nil: all are mapped. Results do not depend on it.
    public var expertMemory: Int?
    /// The instructions to use, as "avx2", "neondot" or "portable"; nil: the fastest of this CPU.
    public var cpuPath: String?
    /// Bytes that loading may need before it is refused; nil: what the system can give.
    public var memoryLimit: Int?
    /// What messages call `expertMemory`; the command line has its own name for it.
    package var expertMemoryName = "expertMemory"

    public init(
        precision: Precision = .int16, threads: Int? = nil, context: Int? = nil,
        cache: CacheType? = nil, expertMemory: Int? = nil, cpuPath: String? = nil,
        memoryLimit: Int? = nil
    ) {
        self.precision = precision
        self.threads = threads
        self.context = context
        self.cache = cache
        self.expertMemory = expertMemory
        self.cpuPath = cpuPath
        self.memoryLimit = memoryLimit
    }

    static let mostThreads = 16

    var cacheType: CacheType { cache ?? (precision == .exact ? .float32 : .float16) }

    package var threadCount: Int { threads ?? min(fastCores(), Self.mostThreads) }

    /// Throws for what does not depend on a model.
    func check() throws {
        guard (1...Self.mostThreads).contains(threadCount) else {
            throw MobileMoEError(
                .input, "\(threadCount) threads: the CPU engine takes 1 to \(Self.mostThreads).")
        }
        if let expertMemory, expertMemory < 0 {
            throw MobileMoEError(
                .input, "\(expertMemoryName) is \(expertMemory); it must be a number of bytes.")
        }
    }

    func context(of configuration: ModelConfiguration) throws -> Int {
        let context = context ?? configuration.context
        guard (1...configuration.context).contains(context) else {
            throw MobileMoEError(
                .input,
                "A context of \(context) tokens: this model takes 1 to \(configuration.context).")
        }
        return context
    }
}

/// Cores for heavy work: where there are two kinds, slow ones would hold up all others.
private func fastCores() -> Int {
    #if canImport(Darwin)
        var count: Int32 = 0
        var size = MemoryLayout<Int32>.size
        if sysctlbyname("hw.perflevel0.physicalcpu", &count, &size, nil, 0) == 0, count > 0 {
            return Int(count)
        }
    #endif
    return max(1, ProcessInfo.processInfo.activeProcessorCount)
}
