/// The letter that GPT-2's vocabulary, and every byte-level one since, spells each byte with.
///
/// A byte that is a visible character of Latin-1 is that; the others follow from U+0100 on.
enum ByteLetters {
    private static let bytes: [UInt32: UInt8] = {
        let visible = [0x21...0x7E, 0xA1...0xAC, 0xAE...0xFF].joined().map { UInt8($0) }
        let others = (0...255).map { UInt8($0) }.filter { !visible.contains($0) }
        let pairs =
            visible.map { (UInt32($0), $0) } + others.enumerated().map { (UInt32(0x100 + $0), $1) }
        return Dictionary(uniqueKeysWithValues: pairs)
    }()

    /// The bytes that a piece spells; nil if not all of it are such letters.
    static func bytes(of piece: String) -> [UInt8]? {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(piece.utf8.count)
        for letter in piece.unicodeScalars {
            guard let byte = Self.bytes[letter.value] else { return nil }
            bytes.append(byte)
        }
        return bytes
    }
}
