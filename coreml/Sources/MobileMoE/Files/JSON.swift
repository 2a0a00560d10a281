import Foundation

/// A JSON value that keeps what Foundation's reader loses: the order of keys, their bytes, and
/// whether a number was written as a whole one.
package enum JSON: Sendable {
    case null
    case bool(Bool)
    case integer(Int)
    /// A number with a fraction or an exponent, or a whole one beyond 64 bits.
    case number(Double)
    case string(String)
    case array([JSON])
    case object(Object)

    /// Keys are told apart by their bytes: Swift holds "é" and "e" with an accent for the same text.
    package struct Object: Sendable {
        package let entries: [(key: String, value: JSON)]
        private let places: [Bytes: Int]

        /// Of a key that is there twice the last counts.
        init(_ entries: [(key: String, value: JSON)]) {
            let places = entries.enumerated().map { (Bytes(text: $1.key), $0) }
            self.init(entries, places: Dictionary(places, uniquingKeysWith: { $1 }))
        }

        fileprivate init(_ entries: [(key: String, value: JSON)], places: [Bytes: Int]) {
            self.entries = entries
            self.places = places
        }

        package subscript(key: String) -> JSON? {
            places[Bytes(text: key)].map { entries[$0].value }
        }
    }

    fileprivate struct Bytes: Hashable, Sendable {
        let text: String

        static func == (one: Bytes, other: Bytes) -> Bool {
            one.text.utf8.elementsEqual(other.text.utf8)
        }

        func hash(into hasher: inout Hasher) {
            var text = text
            text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
        }
    }

    package var object: Object? { if case .object(let object) = self { object } else { nil } }
    package var array: [JSON]? { if case .array(let array) = self { array } else { nil } }
    package var string: String? { if case .string(let text) = self { text } else { nil } }
    package var integer: Int? { if case .integer(let number) = self { number } else { nil } }
    package var isNull: Bool { if case .null = self { true } else { false } }

    /// Any number.
    package var double: Double? {
        switch self {
        case .integer(let number): Double(number)
        case .number(let number): number
        default: nil
        }
    }

    /// As a message shows it: JSON again, cut where it is long.
    package var shown: String {
        let text = written
        return text.count <= 60 ? text : text.prefix(57) + "..."
    }

    private var written: String {
        switch self {
        case .null: "null"
        case .bool(let value): "\(value)"
        case .integer(let number): "\(number)"
        case .number(let number): "\(number)"
        case .string(let text): "'\(text)'"
        case .array(let items): "[" + items.prefix(60).map(\.written).joined(separator: ", ") + "]"
        case .object(let object):
            "{" + object.entries.prefix(60).map { "'\($0)': \($1.written)" }.joined(separator: ", ") + "}"
        }
    }

    /// The content of a UTF-8 text.
    ///
    /// A key that an object has twice is an error: it would have two values. So is what Python's
    /// reader takes though JSON has none of it: NaN and Infinity.
    package static func parse(_ bytes: [UInt8]) throws(JSONError) -> JSON {
        var parser = Parser(bytes: bytes)
        return try parser.document()
    }
}

/// Where and why a text is not JSON; the sentence goes on from the name of the file.
package struct JSONError: Error, Equatable {
    package let what: String
}

private struct Parser {
    let bytes: [UInt8]
    var at = 0
    var depth = 0

    /// Far above any file of a checkpoint, and far below what a thread's stack takes.
    static let mostDepth = 128

    init(bytes: [UInt8]) {
        self.bytes = bytes
        if bytes.starts(with: [0xEF, 0xBB, 0xBF]) { at = 3 }
    }

    func error(_ what: String) -> JSONError {
        JSONError(what: "is not valid JSON: \(what) at byte \(at)")
    }

    mutating func document() throws(JSONError) -> JSON {
        let value = try value()
        skipSpace()
        guard at == bytes.count else { throw error("more follows after its end,") }
        return value
    }

    mutating func skipSpace() {
        while at < bytes.count, [0x20, 0x0A, 0x0D, 0x09].contains(bytes[at]) { at += 1 }
    }

    func peek() -> UInt8? { at < bytes.count ? bytes[at] : nil }

    mutating func take(_ byte: UInt8) -> Bool {
        guard peek() == byte else { return false }
        at += 1
        return true
    }

    mutating func value() throws(JSONError) -> JSON {
        skipSpace()
        switch peek() {
        case UInt8(ascii: "{"): return try object()
        case UInt8(ascii: "["): return try array()
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        case nil: throw error("it ends where a value belongs,")
        default: return try number()
        }
    }

    mutating func word(_ word: String, _ value: JSON) throws(JSONError) -> JSON {
        guard bytes[at...].starts(with: word.utf8) else { throw error("there is no value") }
        at += word.utf8.count
        return value
    }

    mutating func enter() throws(JSONError) {
        depth += 1
        guard depth <= Self.mostDepth else { throw error("more than \(Self.mostDepth) levels deep") }
        at += 1
    }

    mutating func object() throws(JSONError) -> JSON {
        try enter()
        defer { depth -= 1 }
        var entries: [(key: String, value: JSON)] = []
        var places: [JSON.Bytes: Int] = [:]
        skipSpace()
        if take(UInt8(ascii: "}")) { return .object(.init([], places: [:])) }
        while true {
            skipSpace()
            guard peek() == UInt8(ascii: "\"") else { throw error("a key in quotes is missing") }
            let key = try string()
            skipSpace()
            guard take(UInt8(ascii: ":")) else { throw error("a colon is missing") }
            let value = try value()
            guard places.updateValue(entries.count, forKey: JSON.Bytes(text: key)) == nil else {
                throw JSONError(what: "has '\(key)' twice in one object: remove the wrong one")
            }
            entries.append((key, value))
            skipSpace()
            if take(UInt8(ascii: ",")) { continue }
            guard take(UInt8(ascii: "}")) else { throw error("a comma or } is missing") }
            return .object(.init(entries, places: places))
        }
    }

    mutating func array() throws(JSONError) -> JSON {
        try enter()
        defer { depth -= 1 }
        var items: [JSON] = []
        skipSpace()
        if take(UInt8(ascii: "]")) { return .array([]) }
        while true {
            items.append(try value())
            skipSpace()
            if take(UInt8(ascii: ",")) { continue }
            guard take(UInt8(ascii: "]")) else { throw error("a comma or ] is missing") }
            return .array(items)
        }
    }

    mutating func digits() -> Int {
        let start = at
        while let byte = peek(), (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) { at += 1 }
        return at - start
    }

    mutating func number() throws(JSONError) -> JSON {
        let start = at
        _ = take(UInt8(ascii: "-"))
        let leadingZero = peek() == UInt8(ascii: "0")
        let whole = digits()
        guard whole == 1 || (whole > 1 && !leadingZero) else { throw error("there is no value") }
        var isWhole = true
        if take(UInt8(ascii: ".")) {
            isWhole = false
            guard digits() > 0 else { throw error("digits are missing") }
        }
        if take(UInt8(ascii: "e")) || take(UInt8(ascii: "E")) {
            isWhole = false
            if !take(UInt8(ascii: "+")) { _ = take(UInt8(ascii: "-")) }
            guard digits() > 0 else { throw error("digits are missing") }
        }
        let text = String(decoding: bytes[start..<at], as: UTF8.self)
        if isWhole, let number = Int(text) { return .integer(number) }
        return .number(Double(text) ?? .infinity)
    }

    mutating func string() throws(JSONError) -> String {
        at += 1
        var content: [UInt8] = []
        while true {
            let start = at
            while at < bytes.count, bytes[at] >= 0x20, bytes[at] != UInt8(ascii: "\""),
                bytes[at] != UInt8(ascii: "\\")
            {
                at += 1
            }
            content += bytes[start..<at]
            switch peek() {
            case UInt8(ascii: "\""):
                at += 1
                guard let text = String(validating: content, as: UTF8.self) else {
                    throw error("text that is not UTF-8 ends")
                }
                return text
            case UInt8(ascii: "\\"):
                at += 1
                content += try escaped()
            case nil: throw error("it ends inside a text,")
            default: throw error("there is a control character in a text")
            }
        }
    }

    mutating func escaped() throws(JSONError) -> [UInt8] {
        guard let byte = peek() else { throw error("it ends inside a text,") }
        at += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
        case UInt8(ascii: "b"): return [0x08]
        case UInt8(ascii: "f"): return [0x0C]
        case UInt8(ascii: "n"): return [0x0A]
        case UInt8(ascii: "r"): return [0x0D]
        case UInt8(ascii: "t"): return [0x09]
        case UInt8(ascii: "u"):
            var code = UInt32(try hexadecimal())
            if (0xD800..<0xDC00).contains(code), at + 1 < bytes.count,
                bytes[at] == UInt8(ascii: "\\"), bytes[at + 1] == UInt8(ascii: "u")
            {
                at += 2
                let low = UInt32(try hexadecimal())
                guard (0xDC00..<0xE000).contains(low) else { throw error("half a character") }
                code = 0x10000 + (code - 0xD800) << 10 + (low - 0xDC00)
            }
            guard let scalar = Unicode.Scalar(code) else { throw error("half a character") }
            return Array(String(Character(scalar)).utf8)
        default: throw error("an unknown escape")
        }
    }

    mutating func hexadecimal() throws(JSONError) -> UInt16 {
        var value: UInt16 = 0
        for _ in 0..<4 {
            guard let byte = peek(), let digit = Character(Unicode.Scalar(byte)).hexDigitValue,
                byte < 0x80
            else { throw error("four hexadecimal digits are missing") }
            value = value << 4 | UInt16(digit)
            at += 1
        }
        return value
    }
}
