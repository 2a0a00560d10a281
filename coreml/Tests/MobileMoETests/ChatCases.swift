import Foundation
import Testing

@testable import MobileMoE

/// Chat templates with what transformers makes of conversations, written by
/// tests/swift/test_swift_chat.py.
private let folder = ProcessInfo.processInfo.environment["MOBILEMOE_CHAT_CASES"]

@Suite(.enabled(if: folder != nil, "tests/swift/test_swift_chat.py writes the cases"))
struct ChatCases {
    @Test func agree() throws {
        let path = try #require(folder)
        let tokenizer = try TokenizerFile("\(path)/tokenizer.json", vocabularySize: nil)
        let names = try SpecialTokenNames(folder: path).byRole
        for item in try #require(readJSON("\(path)/cases.json").array).map(\.object) {
            let spelling = try #require(item?["template"]?.string)
            let template = ChatTemplate(spelling, specialTokens: names)
            for chat in try #require(item?["chats"]?.array).compactMap(\.object) {
                try expect(template, spelling, chat, tokenizer)
            }
        }
    }

    private func expect(
        _ template: ChatTemplate, _ spelling: String, _ chat: JSON.Object, _ tokenizer: TokenizerFile
    ) throws {
        let messages = try #require(chat["messages"]?.array).map { message in
            ChatMessage(
                role: try #require(ChatMessage.Role(rawValue: message.object?["role"]?.string ?? "")),
                content: try #require(message.object?["content"]?.string))
        }
        let pairs = messages.map { (role: Scalars($0.role.rawValue), content: Scalars($0.content)) }
        do {
            let text = try template.text(of: pairs).string
            let expected = chat["text"]?.string
            #expect(
                expected?.utf8.elementsEqual(text.utf8) ?? false,
                "\(spelling): \(text.debugDescription), not \(expected?.debugDescription ?? "an error")")
            let tokens = ChatTokens(template, special: tokenizer.special) {
                tokenizer.tokens(of: $0, special: false)
            }
            #expect(
                try tokens.tokens(of: messages) == chat["ids"]?.array?.compactMap(\.integer),
                "\(spelling) of \(messages)")
        } catch let error as MobileMoEError {
            #expect(
                chat["text"] == nil, "\(spelling): \(error), not \(chat["text"]?.shown ?? "")")
            if let sentence = chat["refused"]?.string { #expect(error.sentence == sentence) }
            #expect(!error.sentence.contains("\n"))
        }
    }
}
