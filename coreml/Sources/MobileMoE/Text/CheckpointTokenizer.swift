import Foundation

/// The tokenizer of a checkpoint: its tokenizer.json, which alone decides the ids, and its chat
/// format. Gives the tokens and the text that Hugging Face `tokenizers` gives.
public final class CheckpointTokenizer: Tokenizer {
    public let beginning: Int?
    public let endOfAnswer: Set<Int>

    private let file: TokenizerFile
    private let names: [String: String]
    private let template: ChatTemplate?

    /// Reads the tokenizer of `folder`.
    ///
    /// `vocabularySize` and `endOfAnswer` are those of the model, where it is known: a tokenizer with
    /// ids beyond them is refused, and the ends of an answer are added to those that the tokenizer's
    /// files name. Code in the folder is never run.
    public init(folder: URL, vocabularySize: Int? = nil, endOfAnswer: [Int] = []) throws {
        let path = folder.path
        guard fileKind("\(path)/tokenizer.json") == .file else {
            let why =
                UnfinishedDownload.signs(path) ?? "copy it there from the checkpoint that it belongs to"
            throw MobileMoEError(.tokenizer, "\(path) has no tokenizer.json: \(why).")
        }
        let config = try settings("\(path)/tokenizer_config.json")
        if config?["auto_map"]?.object?["AutoTokenizer"] != nil {
            throw MobileMoEError(
                .tokenizer,
                "The tokenizer in \(path) asks for code of its own (auto_map in "
                    + "tokenizer_config.json), and code in a checkpoint is never run. If its "
                    + "tokenizer.json describes it whole, remove auto_map.")
        }
        let file = try TokenizerFile("\(path)/tokenizer.json", vocabularySize: vocabularySize)
        let names = try SpecialTokenNames(folder: path)
        self.file = file
        self.names = names.byRole.filter { file.id(named: $0.value) != nil }
        beginning = self.names["bos_token"].flatMap(file.id(named:))
        template = try ChatTemplate.read(folder: path, specialTokens: self.names)
        self.endOfAnswer = Set(names.ends.compactMap(file.id(named:)) + endOfAnswer)
    }

    /// The id of a token by its name; nil where there is none.
    public func id(of token: String) -> Int? { file.id(named: token) }

    /// The token that the checkpoint's files name for a role: "bos_token", "eos_token", "unk_token",
    /// "pad_token" or "sep_token".
    public func name(of role: String) -> String? { names[role] }

    public func encode(_ text: String) throws -> [Int] {
        file.tokens(of: text, special: false)
    }

    public func encode(prompt text: String) throws -> [Int] {
        guard !text.isEmpty else {
            throw MobileMoEError(.input, "The prompt is empty: there is nothing to continue.")
        }
        let tokens = file.tokens(of: text, special: true)
        if let name = names["bos_token"], text.utf8.starts(with: name.utf8) { return tokens }
        return file.before + tokens + file.after
    }

    public func encode(chat messages: [ChatMessage]) throws -> [Int] {
        guard let template else {
            throw MobileMoEError(
                .tokenizer,
                "This checkpoint's tokenizer has no chat template: it is a base model, which continues "
                    + "text. Give it a prompt instead of messages.")
        }
        guard !messages.isEmpty else { throw MobileMoEError(.input, "There is no message to answer.") }
        let chat = ChatTokens(template, special: file.special) { [file] text in
            file.tokens(of: text, special: false)
        }
        let tokens = try chat.tokens(of: messages)
        guard !tokens.isEmpty else {
            throw MobileMoEError(
                .tokenizer,
                "The chat template gives no tokens for this conversation. It is the checkpoint's "
                    + "(chat_template in tokenizer_config.json, or chat_template.jinja).")
        }
        return tokens
    }

    public func decode(_ tokens: [Int], skippingSpecialTokens: Bool) -> String {
        file.text(of: skippingSpecialTokens ? tokens.filter { !file.skipped.contains($0) } : tokens)
    }

    public func makeStream() -> any TokenStream { Stream(file: file) }

    private struct Stream: TokenStream {
        let file: TokenizerFile
        var text = TextFromBytes()

        mutating func append(_ token: Int) -> String {
            guard let bytes = file.bytes(of: token, isFirst: false) else {
                return text.finish() + "\u{FFFD}"
            }
            return text.append(bytes)
        }

        mutating func finish() -> String { text.finish() }
    }
}

extension TokenizerFile {
    /// The ids of a text. Without `special`, special tokens in it are text.
    func tokens(of text: String, special: Bool) -> [Int] {
        let bytes = Array(text.utf8)
        var tokens: [Int] = []
        for part in added.parts(of: bytes, special: special) {
            switch part {
            case .token(let id): tokens.append(id)
            case .text(let range):
                let changed = rules.changed(Array(bytes[range]))
                let parts = addedAfterChanges.parts(of: changed, special: special)
                for (number, part) in parts.enumerated() {
                    switch part {
                    case .token(let id): tokens.append(id)
                    case .text(let inner):
                        let beginsText = range.lowerBound == 0 && number == 0
                        let words = rules.words(of: Array(changed[inner]), beginsText: beginsText)
                        for word in words { encoding.encode(word, into: &tokens) }
                    }
                }
            }
        }
        return tokens
    }

    /// The bytes of text that a token is; nil for an id that there is not.
    func bytes(of token: Int, isFirst: Bool) -> [UInt8]? {
        (spelledOut[token].map { $0[...] } ?? encoding.vocabulary[token]).map {
            spelling.bytes(of: $0, isFirst: isFirst)
        }
    }

    /// The text of tokens, from the beginning of a text on.
    func text(of tokens: [Int]) -> String {
        var stream = TextFromBytes()
        var text = ""
        for (number, token) in tokens.enumerated() {
            if let bytes = bytes(of: token, isFirst: number == 0) {
                text += stream.append(bytes)
            } else {
                text += stream.finish() + "\u{FFFD}"
            }
        }
        text += stream.finish()
        if case .characters(let characters) = spelling, let (character, most) = characters.droppedAtStart {
            for _ in 0..<most where text.utf8.starts(with: character.utf8) {
                text.unicodeScalars.removeFirst(character.unicodeScalars.count)
            }
        }
        return text
    }
}
