/// What a tokenizer changes in a text, and where it cuts it, before any merge.
struct TextRules: Sendable {
    /// A change of the text, before and after which added tokens are looked for.
    enum Change: Sendable {
        case replace([UInt8], by: [UInt8])
        case prepend([UInt8])
    }

    enum Cut: Sendable {
        case words(WordPattern)
        /// A space before a part that has none, as byte-level tokenizers may have it.
        case spaceBefore
        case metaspace(sign: [UInt8], before: SignBefore, cuts: Bool)
    }

    /// Which parts of a text get a sign for a space before them, unless they begin with one.
    enum SignBefore: String, Sendable {
        case always, first, never
    }

    let changes: [Change]
    let cuts: [Cut]

    func changed(_ text: [UInt8]) -> [UInt8] {
        changes.reduce(text) { text, change in
            switch change {
            case .replace(let old, let new): Self.replacing(old, by: new, in: text)
            case .prepend(let before): text.isEmpty ? text : before + text
            }
        }
    }

    /// The words of a part of a text between added tokens.
    func words(of part: [UInt8], beginsText: Bool) -> [ArraySlice<UInt8>] {
        var words = [part[...]]
        for cut in cuts {
            words = words.enumerated().flatMap { number, word -> [ArraySlice<UInt8>] in
                switch cut {
                case .words(let pattern): return pattern.words(of: Array(word))
                case .spaceBefore: return [word.first == 0x20 ? word : [0x20] + word]
                case .metaspace(let sign, let before, let cuts):
                    var text = Self.replacing([0x20], by: sign, in: Array(word))
                    if before == .always || (before == .first && beginsText && number == 0),
                        !text.starts(with: sign)
                    {
                        text = sign + text
                    }
                    return cuts ? Self.cutBefore(sign, text) : [text[...]]
                }
            }
        }
        return words
    }

    static func replacing(_ old: [UInt8], by new: [UInt8], in text: [UInt8]) -> [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(text.count)
        var start = 0
        while start < text.count {
            if text[start] == old[0], text[start...].starts(with: old) {
                result += new
                start += old.count
            } else {
                result.append(text[start])
                start += 1
            }
        }
        return result
    }

    private static func cutBefore(_ sign: [UInt8], _ text: [UInt8]) -> [ArraySlice<UInt8>] {
        var words: [ArraySlice<UInt8>] = []
        var start = 0
        for place in text.indices.dropFirst() where text[place...].starts(with: sign) {
            words.append(text[start..<place])
            start = place
        }
        return start < text.count ? words + [text[start...]] : words
    }
}
