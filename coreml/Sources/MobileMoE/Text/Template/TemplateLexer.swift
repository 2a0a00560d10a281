/// The tokens of a template, read with the settings that transformers gives Jinja: the line end
/// after a tag goes (`trim_blocks`), and blanks before a tag at the start of a line (`lstrip_blocks`).
enum TemplateToken: Equatable {
    case data(Scalars)
    case outputStart, outputEnd, tagStart, tagEnd
    case name(String)
    case integer(Int)
    case number(Double)
    case text(Scalars)
    case sign(String)
}

struct TemplateLexer {
    private let source: Scalars
    private var at = 0
    private var tokens: [TemplateToken] = []
    /// Whether what was read last ended a line.
    private var startsLine = true

    static func tokens(of template: String) throws(TemplateError) -> [TemplateToken] {
        var lexer = TemplateLexer(template)
        try lexer.read()
        return lexer.tokens
    }

    private init(_ template: String) {
        var source: Scalars = []
        for scalar in template.unicodeScalars {
            if scalar == "\n", source.last == "\r" { source.removeLast() }
            source.append(scalar)
        }
        source = source.map { $0 == "\r" ? "\n" : $0 }
        if source.last == "\n" { source.removeLast() }
        self.source = source
    }

    private func sees(_ text: String) -> Bool { source[at...].starts(with: text.unicodeScalars) }

    private mutating func skipBlanks() {
        while at < source.count, isPythonSpace(source[at]) { at += 1 }
    }

    private mutating func read() throws(TemplateError) {
        while at < source.count {
            let start = at
            while at < source.count, !sees("{{"), !sees("{%"), !sees("{#") { at += 1 }
            var data = source[start..<at]
            guard at < source.count else {
                tokens.append(.data(Array(data)))
                return
            }
            let kind = source[at + 1]
            at += 2
            let sign = at < source.count ? source[at] : " "
            if sign == "-" || sign == "+" { at += 1 }
            if sign == "-" {
                while let last = data.last, isPythonSpace(last) { data.removeLast() }
            } else if sign != "+", kind != "{" {
                let lineStart = data.lastIndex(of: "\n").map { $0 + 1 }
                if lineStart != nil || startsLine, data[(lineStart ?? start)...].allSatisfy(isPythonSpace) {
                    data = data[..<(lineStart ?? start)]
                }
            }
            if !data.isEmpty { tokens.append(.data(Array(data))) }
            switch kind {
            case "#": try comment()
            case "{":
                tokens.append(.outputStart)
                try inside(end: "}}")
                tokens.append(.outputEnd)
            default:
                if try raw() { continue }
                tokens.append(.tagStart)
                try inside(end: "%}")
                tokens.append(.tagEnd)
            }
        }
    }

    private mutating func comment() throws(TemplateError) {
        while at < source.count, !sees("#}") { at += 1 }
        guard at < source.count else { throw .failure("a comment has no end") }
        let strips = source[at - 1] == "-"
        let keepsLineEnd = source[at - 1] == "+"
        at += 2
        afterTag(strips: strips, takesLineEnd: !keepsLineEnd)
    }

    /// Takes the end of a tag, if that is what follows.
    private mutating func takeEnd(_ end: String) -> Bool {
        let isTag = end == "%}"
        if sees("-" + end) {
            at += 3
            afterTag(strips: true, takesLineEnd: false)
        } else if isTag, sees("+" + end) {
            at += 3
            afterTag(strips: false, takesLineEnd: false)
        } else if sees(end) {
            at += 2
            afterTag(strips: false, takesLineEnd: isTag)
        } else {
            return false
        }
        return true
    }

    private mutating func afterTag(strips: Bool, takesLineEnd: Bool) {
        let end = at
        if strips {
            skipBlanks()
        } else if takesLineEnd, at < source.count, source[at] == "\n" {
            at += 1
        }
        startsLine = at > end && source[at - 1] == "\n"
    }

    /// `{% raw %} ... {% endraw %}`, after its `{%`; false if this is another tag.
    private mutating func raw() throws(TemplateError) -> Bool {
        let start = at
        skipBlanks()
        guard sees("raw") else {
            at = start
            return false
        }
        at += 3
        skipBlanks()
        guard takeEnd("%}") else {
            at = start
            return false
        }
        var data: Scalars = []
        while at < source.count {
            let tag = at
            if sees("{%") {
                at += 2
                let strips = at < source.count && source[at] == "-"
                if strips || (at < source.count && source[at] == "+") { at += 1 }
                skipBlanks()
                if sees("endraw") {
                    at += 6
                    skipBlanks()
                    if takeEnd("%}") {
                        if strips { while let last = data.last, isPythonSpace(last) { data.removeLast() } }
                        tokens.append(.data(data))
                        return true
                    }
                }
                at = tag
            }
            data.append(source[at])
            at += 1
        }
        throw .failure("a raw block has no end")
    }

    private static let signs = [
        "==", "!=", ">=", "<=", "//", "**", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
        ">", "<", "=", ".", ":", "|", ",", ";",
    ]

    /// The tokens up to `end`, which inside brackets is none.
    private mutating func inside(end: String) throws(TemplateError) {
        var open: [String] = []
        while true {
            skipBlanks()
            guard at < source.count else { throw .failure("a tag has no end") }
            if open.isEmpty, takeEnd(end) { return }
            let scalar = source[at]
            if scalar == "'" || scalar == "\"" {
                tokens.append(.text(try quoted(by: scalar)))
            } else if ("0"..."9").contains(scalar) {
                try number()
            } else if scalar == "_" || scalar.properties.isXIDStart {
                let start = at
                while at < source.count, source[at].properties.isXIDContinue { at += 1 }
                tokens.append(.name(Scalars(source[start..<at]).string))
            } else if let sign = Self.signs.first(where: sees) {
                at += sign.count
                if "([{".contains(sign) { open.append(sign) }
                if ")]}".contains(sign) {
                    guard let last = open.popLast(), ["()", "[]", "{}"].contains(last + sign) else {
                        throw .failure("there is a '\(sign)' too many")
                    }
                }
                tokens.append(.sign(sign))
            } else {
                throw .failure("there is the character '\(Character(scalar))' in a tag")
            }
        }
    }

    private mutating func number() throws(TemplateError) {
        let start = at
        func isDigit(_ place: Int) -> Bool {
            place < source.count && (("0"..."9").contains(source[place]) || source[place] == "_")
        }
        while isDigit(at) { at += 1 }
        var isWhole = true
        if at < source.count, source[at] == ".", isDigit(at + 1) {
            isWhole = false
            at += 1
            while isDigit(at) { at += 1 }
        }
        if at < source.count, source[at] == "e" || source[at] == "E" {
            let hasSign = at + 1 < source.count && (source[at + 1] == "+" || source[at + 1] == "-")
            if isDigit(at + (hasSign ? 2 : 1)) {
                isWhole = false
                at += hasSign ? 2 : 1
                while isDigit(at) { at += 1 }
            }
        }
        let digits = Scalars(source[start..<at].filter { $0 != "_" }).string
        if isWhole, let value = Int(digits) {
            tokens.append(.integer(value))
        } else if !isWhole, let value = Double(digits) {
            tokens.append(.number(value))
        } else {
            throw .failure("the number \(digits) is too large")
        }
    }

    /// A text in quotes, with Python's escapes; those it does not know stay as they are.
    private mutating func quoted(by quote: Unicode.Scalar) throws(TemplateError) -> Scalars {
        var text: Scalars = []
        at += 1
        while at < source.count, source[at] != quote {
            guard source[at] == "\\", at + 1 < source.count else {
                text.append(source[at])
                at += 1
                continue
            }
            let escaped = source[at + 1]
            at += 2
            switch escaped {
            case "n": text.append("\n")
            case "t": text.append("\t")
            case "r": text.append("\r")
            case "a": text.append("\u{07}")
            case "b": text.append("\u{08}")
            case "f": text.append("\u{0C}")
            case "v": text.append("\u{0B}")
            case "\\", "'", "\"": text.append(escaped)
            case "\n": break
            case "x": text.append(try code(digits: 2))
            case "u": text.append(try code(digits: 4))
            case "U": text.append(try code(digits: 8))
            case "0"..."7":
                var value = escaped.value - 0x30
                var count = 1
                while count < 3, at < source.count, ("0"..."7").contains(source[at]) {
                    value = value * 8 + source[at].value - 0x30
                    at += 1
                    count += 1
                }
                text.append(Unicode.Scalar(value) ?? "\u{FFFD}")
            default: text += ["\\", escaped]
            }
        }
        guard at < source.count else { throw .failure("a text in quotes has no end") }
        at += 1
        return text
    }

    private mutating func code(digits: Int) throws(TemplateError) -> Unicode.Scalar {
        let end = at + digits
        guard end <= source.count, let value = UInt32(Scalars(source[at..<end]).string, radix: 16),
            let scalar = Unicode.Scalar(value)
        else { throw .failure("an escape in a text is no character") }
        at = end
        return scalar
    }
}

/// What Python's `str.isspace` holds for a blank.
func isPythonSpace(_ scalar: Unicode.Scalar) -> Bool {
    scalar.properties.isWhitespace || (0x1C...0x1F).contains(scalar.value)
}
