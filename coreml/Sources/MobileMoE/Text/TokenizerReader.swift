/// Reads the parts of a tokenizer.json.
struct TokenizerReader {
    let path: String

    struct Added {
        let content: String
        let isSpecial: Bool
        let isNormalized: Bool
        let isSingleWord: Bool
        let takesBlanksBefore: Bool
        let takesBlanksAfter: Bool

        func found(id: Int, pattern: [UInt8]) -> AddedTokens.Token {
            AddedTokens.Token(
                id: id, pattern: pattern, isSpecial: isSpecial,
                isSingleWord: isSingleWord, takesBlanksBefore: takesBlanksBefore,
                takesBlanksAfter: takesBlanksAfter)
        }
    }

    /// `what` goes on from the name of the file.
    func error(_ what: String) -> MobileMoEError {
        MobileMoEError(.tokenizer, "\(path) \(what).")
    }

    func unknown(_ part: String, _ kind: String) -> MobileMoEError {
        error(
            "has the \(part) '\(kind)', which this package does not know: it runs byte pair encoding "
                + "as Llama 3 and SentencePiece have it. Bring a tokenizer of another library instead")
    }

    func tooLarge(_ highest: Int, _ limit: Int) -> MobileMoEError {
        error(
            "has ids up to \(highest), and the model's vocabulary has \(limit) entries: it belongs to "
                + "another model, so copy the one of this checkpoint")
    }

    func flag(_ value: JSON?) -> Bool {
        if case .bool(true) = value { true } else { false }
    }

    /// A text, or nil for null or none.
    func text(_ value: JSON?, _ name: String) throws -> String? {
        switch value {
        case nil, .null: return nil
        case .string(let text): return text
        case .some(let other): throw error("has \(other.shown) for its '\(name)', which is a text")
        }
    }

    // MARK: The vocabulary

    func pieces(_ value: JSON?) throws -> [(String, Int)] {
        guard let entries = value?.object?.entries, !entries.isEmpty else {
            throw error("has no vocabulary")
        }
        var used = Set<Int>(minimumCapacity: entries.count)
        return try entries.map { piece, id in
            guard let id = id.integer, id >= 0, id < Int(Int32.max) else {
                throw error("gives '\(piece)' the id \(id.shown); ids are whole numbers from 0 on")
            }
            guard used.insert(id).inserted else { throw error("gives the id \(id) to two pieces") }
            return (piece, id)
        }
    }

    /// The merges of pieces, which are looked for in `vocabulary` as the file spells them.
    func merges(_ value: JSON?, _ vocabulary: Vocabulary) throws -> Merges {
        guard let items = value?.array else { throw error("has no list of merges") }
        var bytes: [UInt8] = []
        return Merges(
            try items.map { item in
                bytes.removeAll(keepingCapacity: true)
                let cut: Int
                switch item {
                case .string(let text):
                    bytes += text.utf8
                    cut = bytes.firstIndex(of: 0x20) ?? 0
                    if cut > 0 { bytes.remove(at: cut) }
                    if bytes.contains(0x20) { bytes = [] }
                case .array(let texts) where texts.count == 2:
                    bytes += (texts[0].string ?? "").utf8
                    cut = bytes.count
                    bytes += (texts[1].string ?? "").utf8
                default: cut = 0
                }
                guard cut > 0, cut < bytes.count else {
                    throw error("has the merge \(item.shown), not of two pieces")
                }
                let ids = bytes.withUnsafeBufferPointer { bytes in
                    [bytes[..<cut], bytes[cut...], bytes[...]].map {
                        vocabulary.id(of: UnsafeBufferPointer(rebasing: $0))
                    }
                }
                guard let left = ids[0], let right = ids[1], let result = ids[2] else {
                    throw error("has the merge \(item.shown), whose pieces its vocabulary does not have")
                }
                return (left, right, result)
            })
    }

    func addedTokens(_ value: JSON?) throws -> [Added] {
        try list(value, "added_tokens").map { item in
            guard let token = item.object, let content = token["content"]?.string, !content.isEmpty
            else { throw error("has the added token \(item.shown), which has no content") }
            let isSpecial = flag(token["special"])
            return Added(
                content: content, isSpecial: isSpecial, isNormalized: flag(token["normalized"]),
                isSingleWord: flag(token["single_word"]), takesBlanksBefore: flag(token["lstrip"]),
                takesBlanksAfter: flag(token["rstrip"]))
        }
    }

    private func list(_ value: JSON?, _ name: String) throws -> [JSON] {
        switch value {
        case nil, .null: return []
        case .array(let items): return items
        case .some(let other): throw error("has \(other.shown) for its '\(name)', which is a list")
        }
    }

    // MARK: What is done to a text

    /// The steps of a part that is null, one step or a sequence of them.
    private func steps(_ value: JSON?, _ part: String, _ inside: String) throws -> [JSON.Object] {
        guard let value, !value.isNull else { return [] }
        guard let step = value.object, let type = step["type"]?.string else {
            throw error("has \(value.shown) for its \(part), which has no type")
        }
        guard type == "Sequence" else { return [step] }
        return try list(step[inside], inside).flatMap { try steps($0, part, inside) }
    }

    func changes(_ value: JSON?) throws -> [TextRules.Change] {
        try steps(value, "normalizer", "normalizers").map { step in
            switch step["type"]?.string {
            case "Replace":
                let (old, new) = try replacement(step, "normalizer")
                return .replace(Array(old.utf8), by: Array(new.utf8))
            case "Prepend":
                return .prepend(Array((try text(step["prepend"], "prepend") ?? "").utf8))
            case let type: throw unknown("normalizer", type ?? "")
            }
        }
    }

    private func replacement(_ step: JSON.Object, _ part: String) throws -> (String, String) {
        guard let old = step["pattern"]?.object?["String"]?.string, !old.isEmpty,
            let new = step["content"]?.string
        else {
            throw unknown("\(part) Replace with the pattern", step["pattern"]?.shown ?? "null")
        }
        return (old, new)
    }

    func hasByteLevel(_ value: JSON?) -> Bool {
        let steps = try? steps(value, "pre-tokenizer", "pretokenizers")
        return steps?.contains { $0["type"]?.string == "ByteLevel" } ?? false
    }

    func cuts(_ value: JSON?) throws -> [TextRules.Cut] {
        let steps = try steps(value, "pre-tokenizer", "pretokenizers")
        return try steps.enumerated().flatMap { number, step -> [TextRules.Cut] in
            switch step["type"]?.string {
            case "Split":
                let spelling = step["pattern"]?.object?["Regex"]?.string
                guard let spelling, let pattern = WordPattern(spelling) else {
                    throw unknown("pre-tokenizer Split with the pattern", step["pattern"]?.shown ?? "null")
                }
                guard step["behavior"]?.string == "Isolated", !flag(step["invert"]) else {
                    throw unknown("pre-tokenizer Split with the behavior", step["behavior"]?.shown ?? "null")
                }
                return [.words(pattern)]
            case "ByteLevel":
                guard number == steps.count - 1 else {
                    throw unknown("pre-tokenizer after ByteLevel", steps[number + 1]["type"]?.string ?? "")
                }
                let usesPattern = step["use_regex"].map(flag) ?? true
                return (flag(step["add_prefix_space"]) ? [.spaceBefore] : [])
                    + (usesPattern ? [.words(.gpt2)] : [])
            case "Metaspace":
                return [
                    .metaspace(
                        sign: Array(try sign(step).utf8), before: try signBefore(step),
                        cuts: step["split"].map(flag) ?? true)
                ]
            case let type: throw unknown("pre-tokenizer", type ?? "")
            }
        }
    }

    private func sign(_ step: JSON.Object) throws -> String {
        let sign = try text(step["replacement"], "replacement") ?? ""
        guard !sign.isEmpty else { throw error("has a Metaspace without a replacement") }
        return sign
    }

    private func signBefore(_ step: JSON.Object) throws -> TextRules.SignBefore {
        if case .bool(false) = step["add_prefix_space"] { return .never }
        let scheme = try text(step["prepend_scheme"], "prepend_scheme") ?? "always"
        guard let before = TextRules.SignBefore(rawValue: scheme) else {
            throw unknown("Metaspace scheme", scheme)
        }
        return before
    }

    // MARK: Around a text, and back to it

    /// The tokens before and after a text.
    func around(_ value: JSON?) throws -> (before: [Int], after: [Int]) {
        var (before, after): ([Int], [Int]) = ([], [])
        for step in try steps(value, "post-processor", "processors") {
            switch step["type"]?.string {
            case "ByteLevel": continue  // changes offsets alone
            case "TemplateProcessing":
                let (first, last) = try template(step)
                (before, after) = (first + before, after + last)
            case let type: throw unknown("post-processor", type ?? "")
            }
        }
        return (before, after)
    }

    private func template(_ step: JSON.Object) throws -> (before: [Int], after: [Int]) {
        let tokens = step["special_tokens"]?.object
        var parts: [[Int]] = [[]]
        for item in try list(step["single"], "single") {
            if item.object?["Sequence"]?.object?["id"]?.string == "A" {
                parts.append([])
                continue
            }
            guard let name = item.object?["SpecialToken"]?.object?["id"]?.string,
                let ids = tokens?[name]?.object?["ids"]?.array?.map(\.integer),
                !ids.contains(nil)
            else { throw error("has \(item.shown) in its post-processor, which names no token") }
            parts[parts.count - 1] += ids.compactMap(\.self)
        }
        guard parts.count == 2 else {
            throw error("has a post-processor that does not take the text once")
        }
        return (parts[0], parts[1])
    }

    func spelling(_ value: JSON?) throws -> PieceSpelling {
        var characters = PieceSpelling.Characters()
        let steps = try steps(value, "decoder", "decoders")
        guard !steps.isEmpty else { throw error("has no decoder: its pieces cannot become text") }
        var isFused = false
        for step in steps {
            let type = step["type"]?.string ?? ""
            switch type {
            case "ByteLevel":
                guard steps.count == 1 else { throw unknown("decoder sequence with", type) }
                return .byteLetters
            case "Replace" where !characters.hasBytePieces && !isFused:
                characters.replacements.append(try replacement(step, "decoder"))
            case "Metaspace" where !characters.hasBytePieces && !isFused:
                let sign = try sign(step)
                if try signBefore(step) != .never { characters.signDroppedFromFirst = sign }
                characters.replacements.append((sign, " "))
            case "ByteFallback" where !isFused: characters.hasBytePieces = true
            case "Fuse": isFused = true
            case "Strip" where isFused && characters.droppedAtStart == nil:
                guard let character = try text(step["content"], "content"),
                    let most = step["start"]?.integer, step["stop"]?.integer == 0
                else { throw unknown("decoder", "Strip at the end") }
                characters.droppedAtStart = (character, most)
            default: throw unknown("decoder", type)
            }
        }
        return .characters(characters)
    }
}
