import Foundation

/// One pass over an answer. The model serves no other until it has ended.
actor AnswerRun {
    private let model: MobileMoEModel
    private let prompt: @Sendable () throws -> [Int]
    private let options: GenerationOptions
    private let progress: Progress?
    private var state = State.new
    private var isStepping = false

    typealias Progress = @Sendable (_ done: Int, _ total: Int) -> Void

    /// How many tokens of a prompt are fed at once; between two lots progress is told.
    private static let lot = 512

    private enum State {
        case new
        case writing(Writing)
        case ended
    }

    init(
        _ model: MobileMoEModel, _ options: GenerationOptions, _ progress: Progress?,
        prompt: @escaping @Sendable () throws -> [Int]
    ) {
        self.model = model
        self.prompt = prompt
        self.options = options
        self.progress = progress
    }

    func next(_ box: UsageBox) async throws -> AnswerSteps.Element? {
        guard !isStepping else {
            throw MobileMoEError(.busy, "Two tasks are reading one answer at once.")
        }
        isStepping = true
        defer { isStepping = false }
        let writing: Writing
        switch state {
        case .ended: return nil
        case .writing(let begun): writing = begun
        case .new:
            state = .ended
            box.usage.withLock { $0 = nil }
            try options.check()
            let tokens = try prompt()
            writing = try Writing(model.begin(tokens), tokens, options, box)
            state = .writing(writing)
            try await ending(writing) {
                try await writing.turn.session.rewind(to: writing.turn.reused)
                try await feedPrompt(writing)
            }
        }
        return try await ending(writing) {
            if writing.fed < writing.tokens.count {
                writing.logits = try await writing.turn.session.feed([writing.tokens[writing.fed]])
                writing.fed += 1
            }
            try Task.checkCancellation()
            let step = writing.step(model.tokenizer)
            if writing.isEnded { end(writing) }
            return step
        }
    }

    private func end(_ writing: Writing) {
        writing.finish()
        state = .ended
    }

    /// An error ends the answer, and lets the next begin.
    private func ending<Result>(
        _ writing: Writing, _ work: () async throws -> Result
    ) async throws -> Result {
        do {
            return try await work()
        } catch {
            end(writing)
            throw error
        }
    }

    private func feedPrompt(_ writing: Writing) async throws {
        let total = writing.tokens.count
        progress?(writing.fed, total)
        while writing.fed < total {
            let end = min(writing.fed + Self.lot, total)
            let lot = Array(writing.tokens[writing.fed..<end])
            writing.logits = try await writing.turn.session.feed(lot)
            writing.fed = end
            progress?(end, total)
        }
    }
}

/// The state of an answer that has begun; its end is told to the model, however it comes.
private final class Writing {
    let turn: MobileMoEModel.Turn
    var tokens: [Int]  // prompt and answer
    var fed: Int  // how many of them the session holds; the last one waits until the next is asked for
    var logits: [Float] = []
    var isEnded: Bool { reason != nil }
    private let options: GenerationOptions
    private let box: UsageBox
    private let most: Int
    private let promptCount: Int
    private let ends: Set<Int>
    private var sampler: Sampler
    private var stream: (any TokenStream)?
    private var stop: StopStrings
    private var reason: Usage.FinishReason?
    private var isFinished = false
    private let start = ContinuousClock.now
    private var first: ContinuousClock.Instant?
    private var last: ContinuousClock.Instant?

    init(
        _ turn: MobileMoEModel.Turn, _ prompt: [Int], _ options: GenerationOptions, _ box: UsageBox
    ) throws {
        self.turn = turn
        tokens = prompt
        fed = turn.reused
        promptCount = prompt.count
        self.options = options
        self.box = box
        most = min(options.maxTokens, turn.session.context - prompt.count)
        ends = options.ignoresEnd ? [] : turn.endOfAnswer
        sampler = Sampler(options)
        stop = StopStrings(options.stop)
    }

    /// A loop that was left early ends here.
    deinit { finish() }

    func finish() {
        guard !isFinished else { return }
        isFinished = true
        turn.end(Array(tokens.prefix(fed)))
        let count = tokens.count - promptCount
        let seconds = first.flatMap { first in last.map { (start, first, $0) } }
        let usage = Usage(
            promptTokens: promptCount - turn.reused, reusedTokens: turn.reused,
            secondsToFirstToken: seconds.map { ($0.1 - $0.0).seconds }, generatedTokens: count,
            tokensPerSecond: count > 1
                ? seconds.map { Double(count - 1) / max(($0.2 - $0.1).seconds, 1e-9) } : nil,
            peakMemory: peakMemory(), finishReason: reason ?? .cancelled)
        box.usage.withLock { $0 = usage }
    }

    /// Chooses the next token.
    func step(_ tokenizer: (any Tokenizer)?) -> AnswerSteps.Element {
        let token = sampler.choose(tokens, logits)
        let now = ContinuousClock.now
        first = first ?? now
        last = now
        tokens.append(token)
        let isEnd = ends.contains(token)
        let isLast = tokens.count - promptCount == most
        if stream == nil { stream = tokenizer?.makeStream() }
        var text = ""
        if !isEnd { text += stream?.append(token) ?? "" }
        if isEnd || isLast { text += stream?.finish() ?? "" }
        text = stop.add(text)
        if stop.isFound {
            reason = .stopString
        } else if isEnd {
            reason = .endToken
        } else if isLast {
            reason = most == options.maxTokens ? .maxTokens : .context
        }
        if reason != nil { text += stop.finish() }
        let experts = (turn.session as? any ReportsExperts)?.chosenExperts()
        return AnswerSteps.Element(token: token, text: text, experts: experts)
    }
}

extension Duration {
    package var seconds: Double {
        Double(components.seconds) + Double(components.attoseconds) * 1e-18
    }
}
