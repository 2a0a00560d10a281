import Foundation

/// What was measured of engines, in the form that `mobilemoe bench --json` writes and `--compare` reads.
public struct BenchResults: Codable, Sendable, Equatable {
    public var model: String
    public var cpu: String
    public var threads: Int
    public var rounds: Int
    /// Bytes of weights that decoding a token reads; 0 where that is not known.
    public var tokenBytes: Int
    /// Bytes a second that memory gives, before each round.
    public var bandwidth: [Double] = []
    public var engines: [EngineResults] = []
    /// Of a phone: heat, battery and energy.
    public var device: DeviceFigures?

    public init(model: String, cpu: String, threads: Int, rounds: Int, tokenBytes: Int) {
        self.model = model
        self.cpu = cpu
        self.threads = threads
        self.rounds = rounds
        self.tokenBytes = tokenBytes
    }

    /// All of one engine.
    public struct EngineResults: Codable, Sendable, Equatable {
        public var name: String
        public var description: String
        /// From the start of the process, or of opening the model, to the first token of a short prompt.
        public var startSeconds: Double
        /// By tokens of the prompt.
        public var contexts: [Int: Measured] = [:]
        /// Prompts that would have taken too long, or have no room.
        public var leftOut: [Int] = []
        /// One token over and over, in a fresh process.
        public var repeated: Measured?
        public var isRival = false
        public var readsInt4 = true

        public init(name: String, description: String, startSeconds: Double) {
            self.name = name
            self.description = description
            self.startSeconds = startSeconds
        }

        /// By rising length of the prompt.
        public var rows: [Measured] { contexts.values.sorted { $0.prompt < $1.prompt } }

        // `repeated` is there also where there is none: who reads the file expects it.
        public func encode(to encoder: any Encoder) throws {
            var keys = encoder.container(keyedBy: CodingKeys.self)
            try keys.encode(name, forKey: .name)
            try keys.encode(description, forKey: .description)
            try keys.encode(startSeconds, forKey: .startSeconds)
            try keys.encode(contexts, forKey: .contexts)
            try keys.encode(leftOut, forKey: .leftOut)
            try keys.encode(repeated, forKey: .repeated)
            try keys.encode(isRival, forKey: .isRival)
            try keys.encode(readsInt4, forKey: .readsInt4)
        }
    }

    /// One engine after prompts of one length; a number for each round.
    public struct Measured: Codable, Sendable, Equatable {
        public var prompt: Int  // tokens
        public var decoded: Int  // tokens after it, one by one
        public var firstTokenSeconds: [Double] = []
        public var decodeSeconds: [Double] = []
        /// After the first round with such a prompt, of the process so far.
        public var peakBytes = 0
        /// Of the weights in a memory map; nil: not known.
        public var touchedBytes: Int?
        public var experts: [ExpertsRead] = []

        public init(prompt: Int, decoded: Int) {
            self.prompt = prompt
            self.decoded = decoded
        }

        /// Seconds from the prompt to the logits after it.
        public var firstToken: Double { median(firstTokenSeconds) }
        /// Tokens of the prompt a second.
        public var prefill: Double { Double(prompt) / firstToken }
        /// Tokens a second after the prompt.
        public var decode: Double { Double(decoded) / median(decodeSeconds) }
    }

    /// Of an engine that reads experts when they are needed, while it decoded.
    public struct ExpertsRead: Codable, Sendable, Equatable {
        public var hits, misses, bytesRead: Int
        /// Those that were not in the system's page cache; nil: not known.
        public var storageBytes: Int?

        public init(hits: Int, misses: Int, bytesRead: Int, storageBytes: Int?) {
            self.hits = hits
            self.misses = misses
            self.bytesRead = bytesRead
            self.storageBytes = storageBytes
        }
    }

    /// The file of an earlier run.
    public static func read(_ json: Data) throws -> BenchResults {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(BenchResults.self, from: json)
    }

    /// Such a file.
    public func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        encoder.keyEncodingStrategy = .convertToSnakeCase
        return try encoder.encode(self) + Data("\n".utf8)
    }

    /// How much of the memory's bandwidth decoding uses, if it reads the weights alone.
    public func bandwidthShare(_ measured: Measured) -> Double {
        median(
            zip(measured.decodeSeconds, bandwidth).map { seconds, rate in
                Double(measured.decoded * tokenBytes) / seconds / rate
            })
    }

    public func find(_ engine: String, _ prompt: Int) -> Measured? {
        engines.first { $0.name == engine }?.contexts[prompt]
    }
}

/// How a phone did, before and after; nil where it does not tell.
public struct DeviceFigures: Codable, Equatable, Sendable {
    /// nominal, fair, serious or critical: at the start, and after each round.
    public var thermalStates: [String] = []
    /// 0 to 1; the system gives steps of a hundredth at best.
    public var batteryAtStart: Double?
    public var batteryAtEnd: Double?
    /// Energy is only told by a battery that is not being charged.
    public var wasCharging: Bool?
    /// From the first round to the end of the last.
    public var seconds = 0.0

    public init() {}

    /// A sentence on what the battery gave, where it can be said.
    public var energy: String? {
        guard wasCharging == false, let start = batteryAtStart, let end = batteryAtEnd, end < start else {
            return nil
        }
        let percent = ((start - end) * 100).rounded()
        return percent < 1 ? nil : "\(Int(percent)) % of the battery in \(Int((seconds / 60).rounded(.up))) minutes"
    }
}

/// The middle of some numbers; 0 of none.
public func median(_ numbers: [Double]) -> Double {
    let sorted = numbers.sorted()
    guard !sorted.isEmpty else { return 0 }
    return (sorted[sorted.count / 2] + sorted[(sorted.count - 1) / 2]) / 2
}
