import Foundation
import MobileMoE

/// A conversation as a JSON file: an object with "messages", or the list of messages alone.
enum ConversationFile {
    private struct Content: Encodable { let messages: [ChatMessage] }

    /// Whole or not at all; -> the path.
    static func save(_ path: String, _ messages: [ChatMessage]) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .withoutEscapingSlashes]
        let url = userPath(path)
        try writeWhole(encoder.encode(Content(messages: messages)) + Data("\n".utf8), url)
        return url.path
    }

    /// A system message or none, then a user's and the assistant's in turn.
    static func load(_ path: String) throws -> [ChatMessage] {
        let source = userPath(path).path
        let content = try readJSON(source, kind: .input)
        guard let items = content.object?["messages"]?.array ?? content.array else {
            throw UserMistake("\(source) has no list of \"messages\".")
        }
        let messages = try items.enumerated().map { index, item in
            try message(item, "\(source): message \(index + 1)")
        }
        let begin = messages.first?.role == .system ? 1 : 0
        for (index, message) in messages.enumerated().dropFirst(begin) {
            let expected: ChatMessage.Role = (index - begin).isMultiple(of: 2) ? .user : .assistant
            guard message.role == expected else {
                throw UserMistake(
                    "\(source): message \(index + 1) is of the \(message.role.rawValue), where one of "
                        + "the \(expected.rawValue) belongs.")
            }
        }
        guard (messages.count - begin).isMultiple(of: 2) else {
            throw UserMistake("\(source) ends with a user's message, without an answer to it.")
        }
        return messages
    }

    private static func message(_ item: JSON, _ place: String) throws -> ChatMessage {
        guard let object = item.object else {
            throw UserMistake("\(place) is not an object with role and content.")
        }
        let known: [ChatMessage.Role] = [.system, .user, .assistant]
        guard let name = object["role"]?.string, let role = ChatMessage.Role(rawValue: name),
            known.contains(role)
        else {
            throw UserMistake(
                "\(place) has the role \(object["role"]?.shown ?? "none"); known are "
                    + "\(known.map(\.rawValue).joined(separator: ", ")).")
        }
        guard let content = object["content"]?.string else {
            throw UserMistake("\(place) has no text as its content.")
        }
        return ChatMessage(role: role, content: content)
    }
}
