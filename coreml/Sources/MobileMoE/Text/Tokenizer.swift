/// Text to token ids and back, and the chat format of a checkpoint.
///
/// `CheckpointTokenizer` reads a checkpoint's own. An app that has a tokenizer already, such as
/// swift-transformers', conforms it to this.
public protocol Tokenizer: Sendable {
    /// The ids of plain text: nothing is added to it, and a special token spelled in it is text.
    func encode(_ text: String) throws -> [Int]

    /// The ids of a text to continue: with the beginning that the checkpoint's texts have, and with
    /// special tokens where the text spells them, as `mobilemoe generate` takes a prompt.
    func encode(prompt text: String) throws -> [Int]

    /// The ids of a conversation in the checkpoint's chat format, with the beginning of the answer.
    /// What messages spell is text: no content becomes a special token.
    func encode(chat messages: [ChatMessage]) throws -> [Int]

    /// The text of tokens. Bytes that are no character become U+FFFD, as do unknown ids.
    func decode(_ tokens: [Int], skippingSpecialTokens: Bool) -> String

    /// Text from tokens as they come, in the middle of a text. Special tokens are spelled out, as
    /// `mobilemoe generate` shows them: whoever wants none of one does not append it.
    func makeStream() -> any TokenStream

    /// The token that a text begins with; nil where the checkpoint names none.
    var beginning: Int? { get }

    /// The tokens that end an answer: all that the files of the checkpoint name.
    var endOfAnswer: Set<Int> { get }
}

extension Tokenizer {
    /// The text of tokens, without special tokens.
    public func decode(_ tokens: [Int]) -> String {
        decode(tokens, skippingSpecialTokens: true)
    }
}

/// Text from tokens as they come: whole characters only, each as soon as it is certain.
public protocol TokenStream {
    /// The text that became certain with `token`; often less than it holds, or none.
    mutating func append(_ token: Int) -> String

    /// No token follows: what is held back, with U+FFFD for half a character.
    mutating func finish() -> String
}

/// One turn of a conversation.
public struct ChatMessage: Sendable, Equatable, Codable {
    public enum Role: String, Sendable, Equatable, Codable, CaseIterable {
        case system, user, assistant, tool
    }

    public var role: Role
    public var content: String

    public init(role: Role, content: String) {
        self.role = role
        self.content = content
    }
}
