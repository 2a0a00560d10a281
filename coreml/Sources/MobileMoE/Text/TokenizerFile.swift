/// A tokenizer.json as this package runs it: byte pair encoding of Llama 3's kind, whose pieces
/// spell bytes as letters, or of SentencePiece's, whose pieces are characters.
///
/// What the file asks for and is not known here is an error that names it: other tokens than the
/// checkpoint's own would only be seen as worse answers.
struct TokenizerFile: Sendable {
    let rules: TextRules
    let encoding: BytePairEncoding
    let spelling: PieceSpelling
    /// The pieces that are not spelled as the vocabulary has them, by id: bytes of text.
    let spelledOut: [Int: [UInt8]]
    /// Added tokens that are looked for in a text as it is, and after its changes.
    let added: AddedTokens
    let addedAfterChanges: AddedTokens
    /// Special tokens: name -> id.
    let special: [ExactText: Int]
    /// Ids that are left out where special tokens are.
    let skipped: Set<Int>
    /// The tokens around a text.
    let before: [Int]
    let after: [Int]
    /// One more than the highest id.
    let count: Int

    /// The id of a token by its name; nil for none.
    func id(named name: String) -> Int? {
        if let id = addedIDs[ExactText(name)] { return id }
        let bytes = isByteLevel ? ByteLetters.bytes(of: name) : Array(name.utf8)
        return bytes?.withUnsafeBufferPointer(encoding.vocabulary.id(of:))
            ?? otherNames[ExactText(name)]
    }

    private let addedIDs: [ExactText: Int]
    /// Pieces of a byte-level vocabulary that are no bytes.
    private let otherNames: [ExactText: Int]
    private var isByteLevel: Bool { if case .byteLetters = spelling { true } else { false } }

    /// Reads the file at `path`; `vocabularySize` is the model's, where it is known.
    init(_ path: String, vocabularySize: Int?) throws {
        let reader = TokenizerReader(path: path)
        guard let file = try readJSON(path, kind: .tokenizer).object, let model = file["model"]?.object
        else { throw reader.error("describes no tokenizer: it has no 'model'") }
        if let type = model["type"]?.string, type != "BPE" { throw reader.unknown("model", type) }

        rules = TextRules(
            changes: try reader.changes(file["normalizer"]),
            cuts: try reader.cuts(file["pre_tokenizer"]))
        spelling = try reader.spelling(file["decoder"])
        let bytesAsLetters = reader.hasByteLevel(file["pre_tokenizer"])
        if case .byteLetters = spelling, bytesAsLetters {
        } else if case .characters = spelling, !bytesAsLetters {
        } else {
            throw reader.error("encodes bytes as letters but does not decode them so, or the reverse")
        }

        let pieces = try reader.pieces(model["vocab"])
        let limit = vocabularySize ?? Self.mostIDs
        let highestPiece = pieces.map(\.1).max() ?? 0
        guard highestPiece < limit else { throw reader.tooLarge(highestPiece, limit) }
        // As the file spells them, also where they spell bytes.
        let named = Vocabulary(pieces.map { ($1, Array($0.utf8)) }, count: highestPiece + 1)

        var tokens: [AddedTokens.Token] = []
        var tokensAfterChanges: [AddedTokens.Token] = []
        var addedIDs: [ExactText: Int] = [:]
        var spelledOut: [Int: [UInt8]] = [:]
        var special: [ExactText: Int] = [:]
        var skipped: Set<Int> = []
        var next = pieces.count
        for token in try reader.addedTokens(file["added_tokens"]) {
            let name = ExactText(token.content)
            // The ids of the vocabulary, else those that follow it, are what `tokenizers` gives.
            let id = named.id(of: token.content) ?? addedIDs[name] ?? next
            if id == next { next += 1 }
            addedIDs[name] = id
            let content = Array(token.content.utf8)
            let pattern = token.isNormalized ? rules.changed(content) : content
            let found = token.found(id: id, pattern: pattern)
            if token.isNormalized { tokensAfterChanges.append(found) } else { tokens.append(found) }
            if token.isSpecial { special[name] = id }
            if token.isSpecial, pattern == content { skipped.insert(id) }
            spelledOut[id] =
                bytesAsLetters
                ? ByteLetters.bytes(of: String(decoding: pattern, as: UTF8.self)) ?? pattern : pattern
        }
        added = AddedTokens(tokens)
        addedAfterChanges = AddedTokens(tokensAfterChanges)

        let highest = max(highestPiece, addedIDs.values.max() ?? 0)
        guard highest < limit else { throw reader.tooLarge(highest, limit) }
        count = highest + 1

        var spelled: [(id: Int, bytes: [UInt8])] = []
        spelled.reserveCapacity(pieces.count)
        var otherNames: [ExactText: Int] = [:]
        for (piece, id) in pieces {
            let bytes = bytesAsLetters ? ByteLetters.bytes(of: piece) : Array(piece.utf8)
            if let bytes {
                spelled.append((id, bytes))
            } else {
                otherNames[ExactText(piece)] = id
                if spelledOut[id] == nil { spelledOut[id] = Array(piece.utf8) }
            }
        }
        let vocabulary = Vocabulary(spelled, count: count)

        let unknown = try reader.text(model["unk_token"], "unk_token")
        if let unknown, named.id(of: unknown) == nil {
            throw reader.error("has no token '\(unknown)', which it names for what has no other")
        }
        for name in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if let sign = try reader.text(model[name], name), !sign.isEmpty {
                throw reader.unknown(name, sign)
            }
        }
        encoding = BytePairEncoding(
            vocabulary: vocabulary,
            merges: try reader.merges(model["merges"], named),
            byteIDs: bytesAsLetters ? Self.ids(vocabulary) { [$0] } : nil,
            fallbackIDs: reader.flag(model["byte_fallback"])
                ? Self.ids(vocabulary) { Array(bytePiece($0).utf8) } : nil,
            unknown: unknown.flatMap(named.id(of:)).map { Int32($0) },
            fusesUnknown: reader.flag(model["fuse_unk"]),
            takesWholeWords: reader.flag(model["ignore_merges"]))
        (before, after) = try reader.around(file["post_processor"])
        guard (before + after).allSatisfy({ (0..<limit).contains($0) }) else {
            throw reader.error("puts a token around texts that the model's vocabulary does not have")
        }
        self.addedIDs = addedIDs
        self.otherNames = otherNames
        self.spelledOut = spelledOut
        self.special = special
        self.skipped = skipped
    }

    /// Above any vocabulary; a damaged file does not ask for memory without end.
    private static let mostIDs = 1 << 24

    private static func ids(_ vocabulary: Vocabulary, _ piece: (UInt8) -> [UInt8]) -> [Int32] {
        (0...255).map { byte in
            piece(byte).withUnsafeBufferPointer { Int32(vocabulary.id(of: $0) ?? -1) }
        }
    }
}

/// SentencePiece's piece of a byte: "<0x0A>".
private func bytePiece(_ byte: UInt8) -> String {
    let digits = String(byte, radix: 16, uppercase: true)
    return "<0x" + (digits.count == 1 ? "0" : "") + digits + ">"
}

/// A text that equals another by its characters' codes: Swift holds "é" and "e" with an accent for
/// the same text, and a tokenizer does not.
struct ExactText: Hashable, Sendable {
    let text: String

    init(_ text: String) { self.text = text }

    static func == (one: ExactText, other: ExactText) -> Bool {
        one.text.utf8.elementsEqual(other.text.utf8)
    }

    func hash(into hasher: inout Hasher) {
        var text = text
        text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
    }
}
