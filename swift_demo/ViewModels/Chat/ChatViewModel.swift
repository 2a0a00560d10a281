import Foundation
import MobileMoE
import Observation

/// The chat: asks, shows the answer as it comes, stops it, and keeps the conversation.
@MainActor
@Observable
final class ChatViewModel {
    enum Phase: Equatable {
        case idle
        /// The model is being opened, or reads the prompt: no word has come yet.
        case waiting
        case answering
    }

    private(set) var conversation: Conversation
    private(set) var phase = Phase.idle
    /// A sentence for the person, until it is dismissed.
    var problem: String?
    var draft = ""
    var options = AnswerOptions()
    /// What runs: shown in the title.
    private(set) var engineDescription: String?

    /// Opens the chosen model; called for the first question, and again after the memory was given back.
    @ObservationIgnored var openEngine: (@Sendable () async throws -> any DemoEngine)?
    /// Whether the chosen engine must stop when the app leaves the screen.
    @ObservationIgnored var mayNotRunInBackground = false
    @ObservationIgnored private let file: ConversationFile
    @ObservationIgnored private let experts: ExpertsViewModel
    @ObservationIgnored private var engine: (any DemoEngine)?
    @ObservationIgnored private var answer: Task<Void, Never>?
    @ObservationIgnored private var reason = Turn.Interruption.stopped

    init(file: ConversationFile, experts: ExpertsViewModel) {
        self.file = file
        self.experts = experts
        conversation = file.read()
    }

    var canSend: Bool {
        phase == .idle && openEngine != nil && !draft.allSatisfy(\.isWhitespace)
    }

    var isBusy: Bool { phase != .idle }

    /// Another model or engine is chosen: what was open is given back, and the chat goes on with the new one.
    func use(_ open: (@Sendable () async throws -> any DemoEngine)?, mayNotRunInBackground: Bool = false) {
        stop()
        engine = nil
        engineDescription = nil
        openEngine = open
        self.mayNotRunInBackground = mayNotRunInBackground
    }

    /// Asks what is in `draft`.
    func send() {
        guard canSend, let openEngine else { return }
        let question = draft.trimmingCharacters(in: .whitespacesAndNewlines)
        draft = ""
        problem = nil
        reason = .stopped
        conversation.turns.append(Turn(isAnswer: false, text: question))
        let messages = conversation.messages
        conversation.turns.append(Turn(isAnswer: true, text: ""))
        phase = .waiting
        let previous = answer
        answer = Task { [options] in
            await previous?.value  // two answers of one engine never overlap
            await write(messages, options, openEngine)
        }
    }

    /// Stops the answer; what was written stays.
    func stop() {
        stop(because: .stopped)
    }

    /// Empties the conversation.
    func clear() {
        stop()
        conversation = Conversation()
        save()
    }

    /// The app leaves the screen: the conversation is kept, and an engine that may not go on stops.
    func enterBackground() {
        if mayNotRunInBackground { stop(because: .leftTheApp) }
        save()
    }

    /// The system asks for memory: an answer stops, and the model is given back until the next question.
    func memoryWarning() {
        stop(because: .lowMemory)
        engine = nil
        engineDescription = nil
        save()
    }

    /// Returns when no answer is being written.
    func finished() async {
        await answer?.value
    }

    private func stop(because reason: Turn.Interruption) {
        guard isBusy else { return }
        self.reason = reason
        answer?.cancel()
    }

    private func write(
        _ messages: [ChatMessage], _ options: AnswerOptions,
        _ open: @Sendable () async throws -> any DemoEngine
    ) async {
        let turn = conversation.turns.last?.id
        do {
            try Task.checkCancellation()
            let engine: any DemoEngine
            if let opened = self.engine {
                engine = opened
            } else {
                engine = try await open()
                try Task.checkCancellation()
                self.engine = engine
            }
            engineDescription = engine.description
            for try await event in engine.chat(messages, options: options) {
                show(event, in: turn)
            }
            try Task.checkCancellation()
        } catch is CancellationError {
            change(turn) { $0.interruption = reason }
        } catch {
            change(turn) { $0.interruption = .failed }
            problem = error.localizedDescription
        }
        phase = .idle
        save()
    }

    private func show(_ event: AnswerEvent, in turn: UUID?) {
        switch event {
        case .text(let piece):
            phase = .answering
            change(turn) { $0.text += piece }
        case .experts(let chosen): experts.record(chosen)
        case .end(let statistics): change(turn) { $0.statistics = statistics }
        }
    }

    /// The turn may be gone: the chat can be cleared while its answer is stopping.
    private func change(_ turn: UUID?, _ edit: (inout Turn) -> Void) {
        guard let index = conversation.turns.lastIndex(where: { $0.id == turn }) else { return }
        edit(&conversation.turns[index])
    }

    private func save() {
        do {
            try file.write(conversation)
        } catch {
            problem = "The conversation could not be kept: \(error.localizedDescription)"
        }
    }
}
