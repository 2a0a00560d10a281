/// Text from UTF-8 that comes in pieces: each character as soon as it is whole, and U+FFFD for what
/// becomes none, one for each longest beginning of a character, as Python and Rust have it.
struct TextFromBytes {
    private var held: [UInt8] = []
    private var missing = 0
    /// What the next byte of the held character may be.
    private var allowed: ClosedRange<UInt8> = 0x80...0xBF

    /// The text that `bytes` complete.
    mutating func append(_ bytes: some Sequence<UInt8>) -> String {
        var whole: [UInt8] = []
        for byte in bytes {
            if missing > 0 {
                if allowed.contains(byte) {
                    held.append(byte)
                    allowed = 0x80...0xBF
                    missing -= 1
                    if missing == 0 { flush(into: &whole) }
                    continue
                }
                missing = 0
                held.removeAll()
                whole += Self.replacement
            }
            begin(byte, &whole)
        }
        return String(decoding: whole, as: UTF8.self)
    }

    /// U+FFFD for half a character; else nothing.
    mutating func finish() -> String {
        defer { self = TextFromBytes() }
        return held.isEmpty ? "" : "\u{FFFD}"
    }

    private static let replacement = Array("\u{FFFD}".utf8)

    private mutating func flush(into whole: inout [UInt8]) {
        whole += held
        held.removeAll()
    }

    private mutating func begin(_ byte: UInt8, _ whole: inout [UInt8]) {
        switch byte {
        case 0..<0x80:
            whole.append(byte)
            return
        case 0xC2...0xDF: missing = 1
        case 0xE0...0xEF: missing = 2
        case 0xF0...0xF4: missing = 3
        default:
            whole += Self.replacement
            return
        }
        // Neither longer forms than needed, nor surrogates, nor beyond U+10FFFF.
        allowed =
            switch byte {
            case 0xE0: 0xA0...0xBF
            case 0xED: 0x80...0x9F
            case 0xF0: 0x90...0xBF
            case 0xF4: 0x80...0x8F
            default: 0x80...0xBF
            }
        held = [byte]
    }
}
