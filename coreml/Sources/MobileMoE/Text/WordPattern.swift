/// A regular expression by which a tokenizer cuts text into words, before any merge.
///
/// Each known one is its own state machine: regular expressions of the system are slow on long
/// texts, and their Unicode is another on every system.
enum WordPattern: Sendable {
    case llama3, gpt2

    /// The pattern that a tokenizer.json spells so, if it is known here.
    init?(_ spelling: String) {
        switch spelling {
        case #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"#
            + #" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#:
            self = .llama3
        case #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#:
            self = .gpt2
        default: return nil
        }
    }

    /// The words of `text`, which is UTF-8: all of it, in order.
    func words(of text: [UInt8]) -> [ArraySlice<UInt8>] {
        let scan = Scan(text)
        var words: [ArraySlice<UInt8>] = []
        var start = 0
        while start < scan.count {
            let end = self == .llama3 ? scan.llama3(from: start) : scan.gpt2(from: start)
            words.append(text[scan.offsets[start]..<scan.offsets[end]])
            start = end
        }
        return words
    }
}

private enum CharacterClass: UInt8 {
    case letter, number, space, newline, other
}

/// A text's characters with their classes. A function's `from` is the start of a word, its result
/// the end; alternatives are tried in the order of the pattern.
private struct Scan {
    var characters: [UInt32] = []
    var classes: [CharacterClass] = []
    /// Where each character begins in the UTF-8, and the end of all.
    var offsets: [Int] = []
    var count: Int { characters.count }

    init(_ text: [UInt8]) {
        characters.reserveCapacity(text.count)
        classes.reserveCapacity(text.count)
        offsets.reserveCapacity(text.count + 1)
        var offset = 0
        while offset < text.count {
            let first = UInt32(text[offset])
            let length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
            var character = length == 1 ? first : first & (0x7F >> UInt32(length))
            for byte in text[(offset + 1)..<(offset + length)] {
                character = character << 6 | UInt32(byte & 0x3F)
            }
            characters.append(character)
            classes.append(Self.classOf(character))
            offsets.append(offset)
            offset += length
        }
        offsets.append(offset)
    }

    private static func classOf(_ character: UInt32) -> CharacterClass {
        switch character {
        case 0x61...0x7A, 0x41...0x5A: .letter
        case 0x30...0x39: .number
        case 0x0A, 0x0D: .newline
        // White_Space of Unicode, unchanged since its version 6.3.
        case 0x09...0x0D, 0x20, 0x85, 0xA0, 0x1680, 0x2000...0x200A, 0x2028, 0x2029, 0x202F, 0x205F,
            0x3000:
            .space
        case 0..<0x80: .other
        default:
            isWithin(letterBounds, character)
                ? .letter : isWithin(numberBounds, character) ? .number : .other
        }
    }

    /// `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll`, `'d`; nil where there is none.
    private func contraction(from start: Int, anyCase: Bool) -> Int? {
        guard characters[start] == 0x27, start + 1 < count else { return nil }
        func letter(_ place: Int) -> Character? {
            guard place < count else { return nil }
            return switch characters[place] {
            case 0x61...0x7A: Character(Unicode.Scalar(UInt8(characters[place])))
            case 0x41...0x5A where anyCase: Character(Unicode.Scalar(UInt8(characters[place] + 32)))
            case 0x17F where anyCase: "s"  // the long s, whose capital is S
            default: nil
            }
        }
        switch (letter(start + 1), letter(start + 2)) {
        case ("s", _), ("t", _), ("m", _), ("d", _): return start + 2
        case ("r", "e"), ("v", "e"), ("l", "l"): return start + 3
        default: return nil
        }
    }

    private func end(of wanted: CharacterClass, from start: Int) -> Int {
        var place = start
        while place < count, classes[place] == wanted { place += 1 }
        return place
    }

    private func isSpace(_ place: Int) -> Bool {
        classes[place] == .space || classes[place] == .newline
    }

    /// `\s+(?!\S)|\s+`: blanks, of which the last goes to a word that follows.
    private func blanks(from start: Int) -> Int {
        var end = start
        while end < count, isSpace(end) { end += 1 }
        return end < count && end - start > 1 ? end - 1 : end
    }

    func llama3(from start: Int) -> Int {
        if let end = contraction(from: start, anyCase: true) { return end }
        let first = classes[start]
        let next = start + 1 < count ? classes[start + 1] : nil
        if first == .letter { return end(of: .letter, from: start) }
        if first != .number, first != .newline, next == .letter {
            return end(of: .letter, from: start + 1)
        }
        if first == .number { return min(end(of: .number, from: start), start + 3) }
        if first == .other || (characters[start] == 0x20 && next == .other) {
            return end(of: .newline, from: end(of: .other, from: start + 1))
        }
        // Blanks: up to the last line end among them, if there is one.
        var end = start
        var afterNewline: Int?
        while end < count, isSpace(end) {
            if classes[end] == .newline { afterNewline = end + 1 }
            end += 1
        }
        return afterNewline ?? blanks(from: start)
    }

    func gpt2(from start: Int) -> Int {
        if let end = contraction(from: start, anyCase: false) { return end }
        let hasSpace = characters[start] == 0x20 && start + 1 < count && !isSpace(start + 1)
        let wordStart = hasSpace ? start + 1 : start
        if isSpace(wordStart) { return blanks(from: start) }
        return end(of: classes[wordStart], from: wordStart)
    }
}

/// Whether `character` lies in one of the runs whose first and last stand in `bounds`.
private func isWithin(_ bounds: [UInt32], _ character: UInt32) -> Bool {
    var low = 0
    var high = bounds.count / 2
    while low < high {
        let middle = (low + high) / 2
        if bounds[2 * middle + 1] < character { low = middle + 1 } else { high = middle }
    }
    return low < bounds.count / 2 && bounds[2 * low] <= character
}
