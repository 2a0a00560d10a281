/// What an answer cost.
public struct Usage: Sendable, Equatable {
    public enum FinishReason: String, Sendable, Codable {
        case endToken = "end token"
        case stopString = "stop string"
        case maxTokens = "max tokens"
        case context  // it is full
        case cancelled
    }

    /// Tokens of the prompt that were computed in this call.
    public let promptTokens: Int
    /// Those that the cache held already, of the turns before.
    public let reusedTokens: Int
    /// From the call to the first token of the answer; nil where none came.
    public let secondsToFirstToken: Double?
    public let generatedTokens: Int
    /// After the first token; nil with a single one.
    public let tokensPerSecond: Double?
    /// Of the process so far, in bytes.
    public let peakMemory: Int
    public let finishReason: FinishReason

    public var promptTokensPerSecond: Double? {
        secondsToFirstToken.map { Double(promptTokens) / max($0, 1e-9) }
    }
}

extension Usage: CustomStringConvertible {
    public var description: String {
        "Prompt: \(promptTokens) tokens"
            + (promptTokensPerSecond.map { ", \(fixed($0, 1)) tokens/s" } ?? "")
            + ". Generated: \(generatedTokens) tokens"
            + (tokensPerSecond.map { ", \(fixed($0, 1)) tokens/s" } ?? "")
            + ". Peak memory: \(fixed(Double(peakMemory) / 1e9, 2)) GB."
    }
}
