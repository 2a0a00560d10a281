/// The chat template of a checkpoint, run as transformers runs it.
struct ChatTemplate: Sendable {
    private let statements: Result<[TemplateStatement], TemplateError>
    /// Role ("bos_token", ...) -> name, which templates may write.
    private let specialTokens: [String: String]

    /// The template of `folder`, if it has one: that of chat_template.jinja, else of
    /// tokenizer_config.json, else of the older chat_template.json; of several, "default".
    static func read(folder: String, specialTokens: [String: String]) throws -> ChatTemplate? {
        let path = "\(folder)/chat_template.jinja"
        if fileKind(path) == .file {
            let file = try OpenFile(path)
            let bytes = try file.bytes(min(file.size(), longest + 1), at: 0)
            guard bytes.count <= longest, let text = String(validating: bytes, as: UTF8.self) else {
                throw MobileMoEError(.tokenizer, "\(path) is no chat template: it is not UTF-8 text.")
            }
            return ChatTemplate(text, specialTokens: specialTokens)
        }
        for name in ["tokenizer_config.json", "chat_template.json"] {
            let path = "\(folder)/\(name)"
            switch try settings(path)?["chat_template"] {
            case nil, .null: continue
            case .string(let text): return ChatTemplate(text, specialTokens: specialTokens)
            case .array(let templates):
                let defaults = templates.compactMap(\.object).filter { $0["name"]?.string == "default" }
                if let text = defaults.last?["template"]?.string {
                    return ChatTemplate(text, specialTokens: specialTokens)
                }
                throw MobileMoEError(
                    .tokenizer, "\(path): none of its chat templates is named 'default'.")
            case .some(let other):
                throw MobileMoEError(
                    .tokenizer, "\(path): chat_template is \(other.shown), which is no template.")
            }
        }
        return nil
    }

    /// Far above any template.
    private static let longest = 4_000_000

    init(_ template: String, specialTokens: [String: String]) {
        statements = Result { () throws(TemplateError) in
            try TemplateParser.statements(of: template)
        }
        self.specialTokens = specialTokens
    }

    /// What the template writes of a conversation, with the beginning of an answer.
    func text(of messages: [(role: Scalars, content: Scalars)]) throws -> Scalars {
        do {
            let scope = TemplateScope()
            for (role, name) in specialTokens { scope[role] = .text(name) }
            scope["messages"] = .list(
                messages.map {
                    .dictionary(
                        TemplateDictionary([("role", .text($0.role)), ("content", .text($0.content))]))
                })
            scope["tools"] = .some(.none)
            scope["documents"] = .some(.none)
            scope["add_generation_prompt"] = .bool(true)
            let run = TemplateRun()
            try run.run(try statements.get(), scope)
            return run.output
        } catch {
            switch error {
            case .refusal(let reason):
                throw MobileMoEError(
                    .input, "The chat template refuses this conversation: \(Self.oneLine(reason)).")
            case .failure(let reason):
                throw MobileMoEError(
                    .tokenizer,
                    "The chat template fails on this conversation: \(Self.oneLine(reason)). It is the "
                        + "checkpoint's (chat_template in tokenizer_config.json, or chat_template.jinja).")
            }
        }
    }

    private static func oneLine(_ reason: String) -> String {
        let words = reason.split(whereSeparator: \.isWhitespace)
        return words.isEmpty ? "no reason given" : words.joined(separator: " ")
    }
}
