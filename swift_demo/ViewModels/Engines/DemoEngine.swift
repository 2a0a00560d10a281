import MobileMoE

/// A model that is ready to answer; one for each `EngineKind`.
protocol DemoEngine: Sendable {
    /// What runs, and where: sizes, threads, precision.
    var description: String { get }

    /// The most tokens of prompt and answer together.
    var context: Int { get }

    /// Bytes of weights that one decoded token reads; nil where the engine cannot tell.
    var bytesReadPerToken: Int? { get }

    /// The answer to the last message, piece by piece. Cancelling the task that iterates stops it.
    func chat(_ messages: [ChatMessage], options: AnswerOptions) -> AsyncThrowingStream<AnswerEvent, any Error>

    /// A conversation of its own, to be measured.
    func session() async throws -> any ModelSession

    /// The ids of a text, for prompts of a wanted length.
    func tokens(of text: String) throws -> [Int]
}

/// What comes while an answer is written.
enum AnswerEvent: Equatable, Sendable {
    /// Whole characters that follow those before.
    case text(String)
    /// The experts that the last token chose: a list for each layer. Of engines that can tell.
    case experts([[Int]])
    /// The answer is complete.
    case end(AnswerStatistics)
}

/// How an answer is to be written.
struct AnswerOptions: Codable, Equatable, Sendable {
    /// 0 takes the likeliest token always.
    var temperature = 0.7
    var topP = 0.95
    var maxTokens = 512
}

/// What an answer cost.
struct AnswerStatistics: Codable, Equatable, Sendable {
    var promptTokens: Int
    var answerTokens: Int
    /// From the question to the first token.
    var firstTokenSeconds: Double
    /// Tokens a second after the first; nil for an answer of one token.
    var tokensPerSecond: Double?
    /// The most memory that the app has used so far.
    var peakMemoryBytes: Int
}
