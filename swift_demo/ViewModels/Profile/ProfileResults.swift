import Foundation

/// What was measured of one engine, in the form that `mobilemoe bench --json` writes and
/// `mobilemoe bench --compare` reads.
struct ProfileResults: Codable, Equatable, Sendable {
    var model: String
    /// The device and its system.
    var cpu: String
    var threads: Int
    var rounds: Int
    /// Bytes of weights that decoding a token reads; 0 where the engine cannot tell.
    var tokenBytes: Int
    /// Of memory, in bytes a second, before each round.
    var bandwidth: [Double]
    var engines: [EngineFigures]
    /// What only a phone tells; `mobilemoe bench` shows it as it is.
    var device: DeviceFigures

    enum CodingKeys: String, CodingKey {
        case model, cpu, threads, rounds, tokenBytes = "token_bytes", bandwidth, engines, device
    }

    /// Indented JSON with sorted keys.
    func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        return try encoder.encode(self)
    }
}

struct EngineFigures: Codable, Equatable, Sendable {
    var name: String
    var description: String
    /// From opening the model to the first token of a short prompt.
    var startSeconds: Double
    /// By the prompt's number of tokens, as text.
    var contexts: [String: ContextFigures] = [:]
    var leftOut: [Int] = []
    /// Repeated tokens understate a mixture's memory: one prompt of a single token over and over.
    var repeated: ContextFigures?
    var isRival = false
    var readsInt4 = true

    enum CodingKeys: String, CodingKey {
        case name, description, startSeconds = "start_seconds", contexts, leftOut = "left_out", repeated
        case isRival = "is_rival", readsInt4 = "reads_int4"
    }

    /// By rising length.
    var rows: [ContextFigures] { contexts.values.sorted { $0.prompt < $1.prompt } }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(name, forKey: .name)
        try container.encode(description, forKey: .description)
        try container.encode(startSeconds, forKey: .startSeconds)
        try container.encode(contexts, forKey: .contexts)
        try container.encode(leftOut, forKey: .leftOut)
        try container.encode(repeated, forKey: .repeated)  // null where there is none: the reader asks for the key
        try container.encode(isRival, forKey: .isRival)
        try container.encode(readsInt4, forKey: .readsInt4)
    }
}

/// One length of prompt; a number for each round.
struct ContextFigures: Codable, Equatable, Sendable {
    var prompt: Int
    var decoded: Int
    var firstTokenSeconds: [Double] = []
    var decodeSeconds: [Double] = []
    var peakBytes = 0

    enum CodingKeys: String, CodingKey {
        case prompt, decoded, firstTokenSeconds = "first_token_seconds", decodeSeconds = "decode_seconds"
        case peakBytes = "peak_bytes"
    }

    /// Seconds from the prompt to the scores after it, median.
    var firstToken: Double { median(firstTokenSeconds) }
    /// Tokens of the prompt a second, median.
    var prefillRate: Double { Double(prompt) / firstToken }
    /// Tokens a second after the prompt, median.
    var decodeRate: Double { Double(decoded) / median(decodeSeconds) }
}

/// How the device did, before and after; nil where it does not tell.
struct DeviceFigures: Codable, Equatable, Sendable {
    var name: String
    /// nominal, fair, serious or critical: at the start, and after each round.
    var thermalStates: [String] = []
    /// 0 to 1; the system gives steps of a hundredth at best.
    var batteryAtStart: Double?
    var batteryAtEnd: Double?
    /// Energy is only told by a battery that is not being charged.
    var wasCharging: Bool?
    /// From the first round to the end of the last.
    var seconds = 0.0

    enum CodingKeys: String, CodingKey {
        case name, thermalStates = "thermal_states", batteryAtStart = "battery_at_start"
        case batteryAtEnd = "battery_at_end", wasCharging = "was_charging", seconds
    }

    /// A sentence on what the battery gave, where it can be said.
    var energy: String? {
        guard wasCharging == false, let start = batteryAtStart, let end = batteryAtEnd, end < start else {
            return nil
        }
        let percent = ((start - end) * 100).rounded()
        return percent < 1 ? nil : "\(Int(percent)) % of the battery in \(Int((seconds / 60).rounded(.up))) minutes"
    }
}

/// The middle of some numbers; NaN of none.
func median(_ numbers: [Double]) -> Double {
    let sorted = numbers.sorted()
    guard !sorted.isEmpty else { return .nan }
    let middle = sorted.count / 2
    return sorted.count.isMultiple(of: 2) ? (sorted[middle - 1] + sorted[middle]) / 2 : sorted[middle]
}
