import Foundation
import Synchronization

/// A model that answers.
///
///     let model = try await MobileMoEModel(folder: folder)
///     let messages = [ChatMessage(role: .user, content: "What is a list?")]
///     for try await piece in model.chat(messages) { print(piece, terminator: "") }
///
/// It holds one conversation's keys and values: of a prompt that begins as the one before did, answer
/// included, only the rest is computed. It writes one answer at a time.
public final class MobileMoEModel: Sendable {
    public let engine: any Engine
    public let tokenizer: (any Tokenizer)?
    private let session: any ModelSession
    private let state = Mutex(State())

    private struct State {
        var isBusy = false
        var fed: [Int] = []  // the tokens in the session
    }

    /// The published INT4 checkpoint in `folder`, on the CPU; with its own tokenizer, or with yours.
    ///
    /// Throws MobileMoEError, a sentence for a person, for all that is wrong with the folder or an
    /// option, and where the memory does not suffice.
    public convenience init(
        folder: URL, options: CPUOptions = CPUOptions(), tokenizer: (any Tokenizer)? = nil
    ) async throws {
        let (engine, tokenizer) = try await offPool {
            let engine = try CPUEngine(folder: folder, options: options)
            let own = try tokenizer ?? CheckpointTokenizer(
                folder: folder, vocabularySize: engine.vocabularySize,
                endOfAnswer: Array(engine.endOfAnswer))
            return (engine, own)
        }
        try await self.init(engine: engine, tokenizer: tokenizer)
    }

    /// Any engine with any tokenizer; without one it continues tokens.
    public init(engine: any Engine, tokenizer: (any Tokenizer)?) async throws {
        self.engine = engine
        self.tokenizer = tokenizer
        session = try await engine.makeSession()
    }

    /// The most tokens of prompt and answer together.
    public var context: Int { session.context }

    /// The answer to a conversation, whose last message is the user's (or a tool's).
    ///
    /// `progress` is told how many tokens of the prompt are computed. All that is wrong is thrown
    /// where the answer is read.
    public func chat(
        _ messages: [ChatMessage], _ options: GenerationOptions = GenerationOptions(),
        progress: (@Sendable (_ done: Int, _ total: Int) -> Void)? = nil
    ) -> Answer {
        answer(options, progress) { [self] in
            guard let last = messages.last else {
                throw MobileMoEError(.input, "There is no message to answer.")
            }
            guard last.role == .user || last.role == .tool else {
                throw MobileMoEError(
                    .input, "The last message is of the \(last.role.rawValue): there is nothing to answer.")
            }
            guard last.content.contains(where: { !$0.isWhitespace }) else {
                throw MobileMoEError(.input, "The message is empty: there is nothing to answer.")
            }
            return try needTokenizer().encode(chat: messages)
        }
    }

    /// What continues `prompt`, before which the checkpoint's beginning token is put.
    public func generate(
        _ prompt: String, _ options: GenerationOptions = GenerationOptions(),
        progress: (@Sendable (_ done: Int, _ total: Int) -> Void)? = nil
    ) -> Answer {
        answer(options, progress) { [self] in
            guard !prompt.isEmpty else {
                throw MobileMoEError(.input, "The prompt is empty: there is nothing to continue.")
            }
            return try needTokenizer().encode(prompt: prompt)
        }
    }

    /// What continues these tokens; without a tokenizer its pieces are empty, and its `steps` have
    /// the tokens.
    public func generate(
        tokens: [Int], _ options: GenerationOptions = GenerationOptions(),
        progress: (@Sendable (_ done: Int, _ total: Int) -> Void)? = nil
    ) -> Answer {
        answer(options, progress) { tokens }
    }

    /// Tokens of a conversation, the beginning of the answer included.
    public func tokenCount(_ messages: [ChatMessage]) throws -> Int {
        messages.isEmpty ? 0 : try needTokenizer().encode(chat: messages).count
    }

    private func answer(
        _ options: GenerationOptions, _ progress: AnswerRun.Progress?,
        prompt: @escaping @Sendable () throws -> [Int]
    ) -> Answer {
        Answer { AnswerRun(self, options, progress, prompt: prompt) }
    }

    private func needTokenizer() throws -> any Tokenizer {
        guard let tokenizer else {
            throw MobileMoEError(
                .tokenizer, "This model was opened without a tokenizer, so it continues tokens only.")
        }
        return tokenizer
    }

    // MARK: One answer at a time

    /// The right to the session, for one answer.
    struct Turn {
        let session: any ModelSession
        let reused: Int  // tokens that it holds already, when it is rewound to them
        let endOfAnswer: Set<Int>
        let end: @Sendable (_ fed: [Int]) -> Void
    }

    /// Throws `busy` during another answer.
    func begin(_ prompt: [Int]) throws -> Turn {
        guard !prompt.isEmpty else {
            throw MobileMoEError(.input, "The prompt is empty: there is nothing to continue.")
        }
        guard prompt.count < context else {
            throw MobileMoEError(
                .input,
                "The prompt has \(prompt.count) tokens, but the context is \(context), answer included: "
                    + "shorten the prompt or the conversation.")
        }
        try checkTokens(
            prompt, vocabularySize: engine.vocabularySize, position: 0, context: context)
        let reused = try state.withLock {
            guard !$0.isBusy else {
                throw MobileMoEError(
                    .busy, "Another answer is being written: wait for its end, or cancel it.")
            }
            // At least one token is computed anew: the answer begins with its scores.
            $0.isBusy = true
            let shared = zip($0.fed, prompt).prefix { $0 == $1 }.count
            return min(shared, prompt.count - 1)
        }
        let vocabulary = 0..<engine.vocabularySize
        let ends = engine.endOfAnswer.union(tokenizer?.endOfAnswer ?? []).filter(vocabulary.contains)
        return Turn(session: session, reused: reused, endOfAnswer: ends) { [self] fed in
            state.withLock { $0 = State(isBusy: false, fed: fed) }
        }
    }
}

/// Runs what blocks for a while, so that no thread of Swift's own pool waits for it.
private func offPool<Result: Sendable>(
    _ work: @escaping @Sendable () throws -> Result
) async throws -> Result {
    try await withCheckedThrowingContinuation { continuation in
        DispatchQueue.global(qos: .userInitiated).async {
            continuation.resume(with: Swift.Result(catching: work))
        }
    }
}
