import Foundation

/// What `bench` measured, in the form that `mobilemoe bench --json` writes and `--compare` reads.
struct BenchResults: Codable, Sendable, Equatable {
    var model: String
    var cpu: String
    var threads: Int
    var rounds: Int
    /// Bytes of weights that decoding a token reads.
    var tokenBytes: Int
    /// Bytes a second that memory gives, before each round.
    var bandwidth: [Double] = []
    var engines: [EngineResults] = []

    /// All of one engine.
    struct EngineResults: Codable, Sendable, Equatable {
        var name: String
        var description: String
        /// From the start of the process to the first token of a short prompt.
        var startSeconds: Double
        /// By tokens of the prompt.
        var contexts: [Int: Measured] = [:]
        /// Prompts that would have taken too long.
        var leftOut: [Int] = []
        /// One token over and over, in a fresh process.
        var repeated: Measured?
        var isRival = false
        var readsInt4 = true

        // `repeated` is there also where there is none: who reads the file expects it.
        func encode(to encoder: any Encoder) throws {
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
    struct Measured: Codable, Sendable, Equatable {
        var prompt: Int  // tokens
        var decoded: Int  // tokens after it, one by one
        var firstTokenSeconds: [Double] = []
        var decodeSeconds: [Double] = []
        /// After the first round with such a prompt, of the process so far.
        var peakBytes = 0
        /// Of the weights in a memory map; nil: not known.
        var touchedBytes: Int?
        var experts: [ExpertsRead] = []

        /// Seconds from the prompt to the logits after it.
        var firstToken: Double { median(firstTokenSeconds) }
        /// Tokens of the prompt a second.
        var prefill: Double { Double(prompt) / firstToken }
        /// Tokens a second after the prompt.
        var decode: Double { Double(decoded) / median(decodeSeconds) }
    }

    /// Of an engine that reads experts when they are needed, while it decoded.
    struct ExpertsRead: Codable, Sendable, Equatable {
        var hits, misses, bytesRead: Int
        /// Those that were not in the system's page cache; nil: not known.
        var storageBytes: Int?
    }

    /// The file of an earlier run.
    static func read(_ json: Data) throws -> BenchResults {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(BenchResults.self, from: json)
    }

    /// How much of the memory's bandwidth decoding uses, if it reads the weights alone.
    func bandwidthShare(_ measured: Measured) -> Double {
        median(
            zip(measured.decodeSeconds, bandwidth).map { seconds, rate in
                Double(measured.decoded * tokenBytes) / seconds / rate
            })
    }

    func find(_ engine: String, _ prompt: Int) -> Measured? {
        engines.first { $0.name == engine }?.contexts[prompt]
    }
}

/// 0 of no numbers.
func median(_ numbers: [Double]) -> Double {
    let sorted = numbers.sorted()
    guard !sorted.isEmpty else { return 0 }
    return (sorted[sorted.count / 2] + sorted[(sorted.count - 1) / 2]) / 2
}
