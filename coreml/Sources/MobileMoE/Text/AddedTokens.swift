/// The tokens that are found in a text before it is cut into words.
struct AddedTokens: Sendable {
    struct Token: Sendable {
        let id: Int
        /// What is found in the text: the content, normalized where the token says so.
        let pattern: [UInt8]
        let isSpecial: Bool
        let isSingleWord: Bool
        let takesBlanksBefore: Bool
        let takesBlanksAfter: Bool
    }

    /// A part of a text: a token, or text between tokens.
    enum Part: Equatable {
        case token(Int)
        case text(Range<Int>)
    }

    private let tokens: [Token]
    private let finder: PatternFinder

    init(_ tokens: [Token]) {
        self.tokens = tokens
        finder = PatternFinder(tokens.map(\.pattern))
    }

    /// Cuts a text, which is UTF-8, at its tokens. Without `special`, special ones are text.
    func parts(of text: [UInt8], special: Bool) -> [Part] {
        var parts: [Part] = []
        var done = 0
        finder.forEachMatch(in: text) { number, range in
            let token = tokens[number]
            if token.isSpecial, !special { return }
            var (start, end) = (range.lowerBound, range.upperBound)
            if token.isSingleWord {
                let before = lastScalar(of: text[..<start]).map(isWord) ?? false
                let after = firstScalar(of: text[end...]).map(isWord) ?? false
                if before || after { return }
            }
            if token.takesBlanksBefore {
                while let last = lastScalar(of: text[..<start]), last.properties.isWhitespace {
                    start -= UTF8.width(last)
                }
                start = max(start, done)  // an earlier token may have taken them
            }
            if token.takesBlanksAfter {
                while let first = firstScalar(of: text[end...]), first.properties.isWhitespace {
                    end += UTF8.width(first)
                }
            }
            if done < start { parts.append(.text(done..<start)) }
            parts.append(.token(token.id))
            done = end
        }
        if done < text.count { parts.append(.text(done..<text.count)) }
        return parts
    }
}

/// Finds patterns in a text from left to right, of those at one place the longest.
struct PatternFinder: Sendable {
    /// A tree of bytes: (node, byte) -> node. Node 0 is the root.
    private var edges: [UInt64: Int] = [:]
    private var patternAt: [Int?] = [nil]
    private var canBegin = [Bool](repeating: false, count: 256)

    /// Of equal patterns the last is found.
    init(_ patterns: [[UInt8]]) {
        for (number, pattern) in patterns.enumerated() {
            guard let first = pattern.first else { continue }
            canBegin[Int(first)] = true
            var node = 0
            for byte in pattern {
                let edge = Self.edge(node, byte)
                if let there = edges[edge] {
                    node = there
                } else {
                    node = patternAt.count
                    edges[edge] = node
                    patternAt.append(nil)
                }
            }
            patternAt[node] = number
        }
    }

    /// Calls `body` with the number of each pattern found, and where.
    func forEachMatch(in text: [UInt8], _ body: (Int, Range<Int>) -> Void) {
        var start = 0
        while start < text.count {
            guard canBegin[Int(text[start])] else {
                start += 1
                continue
            }
            var found: (number: Int, end: Int)?
            var node = 0
            var end = start
            while end < text.count, let there = edges[Self.edge(node, text[end])] {
                node = there
                end += 1
                if let number = patternAt[node] { found = (number, end) }
            }
            if let found { body(found.number, start..<found.end) }
            start = found?.end ?? start + 1
        }
    }

    private static func edge(_ node: Int, _ byte: UInt8) -> UInt64 {
        UInt64(node) << 8 | UInt64(byte)
    }
}

private func firstScalar(of text: ArraySlice<UInt8>) -> Unicode.Scalar? {
    guard let first = text.first else { return nil }
    let length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
    return String(decoding: text.prefix(length), as: UTF8.self).unicodeScalars.first
}

private func lastScalar(of text: ArraySlice<UInt8>) -> Unicode.Scalar? {
    guard let start = text.lastIndex(where: { $0 & 0xC0 != 0x80 }) else { return nil }
    return firstScalar(of: text[start...])
}

/// What `\w` is in Rust's regular expressions.
private func isWord(_ scalar: Unicode.Scalar) -> Bool {
    let properties = scalar.properties
    if properties.isAlphabetic || properties.isJoinControl { return true }
    return switch properties.generalCategory {
    case .nonspacingMark, .spacingMark, .enclosingMark, .decimalNumber, .connectorPunctuation: true
    default: false
    }
}
