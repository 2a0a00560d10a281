import Foundation
import MobileMoE

/// The turns of a chat, as the screen shows them and the disk keeps them.
struct Conversation: Codable, Equatable, Sendable {
    var turns: [Turn] = []

    /// What an engine is asked to answer. An answer that failed without a word is no turn for it.
    var messages: [ChatMessage] {
        turns.filter { !$0.text.isEmpty }.map { ChatMessage(role: $0.isAnswer ? .assistant : .user, content: $0.text) }
    }
}

/// A question, or an answer with how it ended.
struct Turn: Codable, Equatable, Identifiable, Sendable {
    /// How an answer ended before its end.
    enum Interruption: String, Codable, Sendable {
        case stopped, leftTheApp, lowMemory, failed

        var sentence: String {
            switch self {
            case .stopped: "You stopped the answer."
            case .leftTheApp: "The answer stopped when the app left the screen."
            case .lowMemory: "The answer stopped because the device ran short of memory."
            case .failed: "The answer could not be finished."
            }
        }
    }

    var id = UUID()
    let isAnswer: Bool
    var text: String
    var statistics: AnswerStatistics?
    var interruption: Interruption?
}

/// Keeps the conversation in a file, so that it is there when the app comes back.
struct ConversationFile: Sendable {
    let url: URL

    /// An empty conversation where there is none, or where the file cannot be read: a chat that is lost
    /// must not keep the app from starting.
    func read() -> Conversation {
        guard let data = try? Data(contentsOf: url) else { return Conversation() }
        return (try? JSONDecoder().decode(Conversation.self, from: data)) ?? Conversation()
    }

    /// All of it or nothing.
    func write(_ conversation: Conversation) throws {
        try FileManager.default.createDirectory(
            at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
        try JSONEncoder().encode(conversation).write(to: url, options: .atomic)
    }
}
