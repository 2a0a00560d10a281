import Foundation
import MLX
import MLXLMCommon
import MobileMoE

/// The tokenizer of a checkpoint for mlx-swift-lm, which brings none of its own.
public struct MobileMoETokenizer: MLXLMCommon.Tokenizer {
    private let tokenizer: CheckpointTokenizer

    public init(folder: URL) throws {
        tokenizer = try CheckpointTokenizer(folder: folder)
    }

    public var endOfAnswer: Set<Int> { tokenizer.endOfAnswer }
    public var bosToken: String? { tokenizer.name(of: "bos_token") }
    public var eosToken: String? { tokenizer.name(of: "eos_token") }
    public var unknownToken: String? { tokenizer.name(of: "unk_token") }

    public func encode(text: String, addSpecialTokens: Bool) -> [Int] {
        // The only error of a text is that it is empty.
        (try? addSpecialTokens ? tokenizer.encode(prompt: text) : tokenizer.encode(text)) ?? []
    }

    public func decode(tokenIds: [Int], skipSpecialTokens: Bool) -> String {
        tokenizer.decode(tokenIds, skippingSpecialTokens: skipSpecialTokens)
    }

    public func convertTokenToId(_ token: String) -> Int? { tokenizer.id(of: token) }

    public func convertIdToToken(_ id: Int) -> String? {
        tokenizer.decode([id], skippingSpecialTokens: false)
    }

    /// Contents of messages are text, whatever they spell; tools are not known to templates here.
    public func applyChatTemplate(
        messages: [[String: any Sendable]], tools: [[String: any Sendable]]?,
        additionalContext: [String: any Sendable]?
    ) throws -> [Int] {
        guard tools?.isEmpty ?? true else {
            throw MobileMoEMLXError("Chats with tools are not supported here.")
        }
        return try tokenizer.encode(
            chat: messages.map { message in
                guard let role = (message["role"] as? String).flatMap(ChatMessage.Role.init),
                    let content = message["content"] as? String
                else { throw MobileMoEMLXError("A message has a role and a text: \(message).") }
                return ChatMessage(role: role, content: content)
            })
    }
}

extension MobileMoEMLXModel {
    /// The model in `folder` with its tokenizer and chat format, for mlx-swift-lm's `ChatSession` and
    /// `generate`:
    ///
    ///     let session = ChatSession(try MobileMoEMLXModel.container(folder: folder))
    ///     for try await piece in session.streamResponse(to: "What is a list?") { ... }
    public static func container(folder: URL) throws -> ModelContainer {
        let model = try load(folder: folder)
        let tokenizer = try MobileMoETokenizer(folder: folder)
        let ends = try BaseEnds(folder).ids.union(tokenizer.endOfAnswer)
        return ModelContainer(
            context: ModelContext(
                configuration: ModelConfiguration(directory: folder, eosTokenIds: ends), model: model,
                processor: MessageProcessor(tokenizer: tokenizer), tokenizer: tokenizer))
    }
}

/// The ends of an answer that config.json and generation_config.json name.
private struct BaseEnds {
    var ids: Set<Int> = []

    init(_ folder: URL) throws {
        struct Named: Decodable {
            let eosTokenIds: IntOrIntArray?
            enum CodingKeys: String, CodingKey { case eosTokenIds = "eos_token_id" }
        }
        for name in ["config.json", "generation_config.json"] {
            guard let data = try? Data(contentsOf: folder.appendingPathComponent(name)) else { continue }
            ids.formUnion(try JSONDecoder().decode(Named.self, from: data).eosTokenIds?.values ?? [])
        }
    }
}

private struct MessageProcessor: UserInputProcessor {
    let tokenizer: MobileMoETokenizer

    func prepare(input: UserInput) throws -> LMInput {
        let messages = DefaultMessageGenerator().generate(from: input)
        let tokens = try tokenizer.applyChatTemplate(
            messages: messages, tools: input.tools, additionalContext: input.additionalContext)
        return LMInput(tokens: MLXArray(tokens))
    }
}
