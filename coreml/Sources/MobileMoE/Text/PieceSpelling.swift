/// How pieces of a vocabulary spell text: the decoder of a tokenizer.json.
enum PieceSpelling: Sendable {
    /// Each letter is a byte.
    case byteLetters
    case characters(Characters)

    struct Characters: Sendable {
        var replacements: [(old: String, new: String)] = []
        /// Whether "<0x0A>" is the byte 10.
        var hasBytePieces = false
        /// A character of which up to `most` go at the beginning of a decoded text.
        var droppedAtStart: (character: String, most: Int)?
        /// A sign for a space that the first piece of a decoded text loses.
        var signDroppedFromFirst: String?
    }

    /// The bytes of text that a piece is, in the middle of a text.
    func bytes(of piece: ArraySlice<UInt8>, isFirst: Bool = false) -> [UInt8] {
        guard case .characters(let characters) = self else {
            return Array(piece)  // the vocabulary holds bytes already
        }
        var piece = Array(piece)
        if isFirst, let sign = characters.signDroppedFromFirst {
            piece = TextRules.replacing(Array(sign.utf8), by: [], in: piece)
        }
        for (old, new) in characters.replacements {
            piece = TextRules.replacing(Array(old.utf8), by: Array(new.utf8), in: piece)
        }
        if characters.hasBytePieces, let byte = Self.byte(piece) { return [byte] }
        return piece
    }

    private static func byte(_ piece: [UInt8]) -> UInt8? {
        guard piece.count == 6, piece.starts(with: "<0x".utf8), piece[5] == UInt8(ascii: ">")
        else { return nil }
        return UInt8(String(decoding: piece[3..<5], as: UTF8.self), radix: 16)
    }
}
