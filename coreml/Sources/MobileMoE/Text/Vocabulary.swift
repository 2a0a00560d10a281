/// The pieces of a vocabulary: id -> bytes, and bytes -> id. Flat, since a phone holds 128,256 of
/// them beside the model.
struct Vocabulary: Sendable {
    private let bytes: [UInt8]
    private let starts: [UInt32]
    private let isKnown: [Bool]
    /// Ids by the hash of their bytes, with linear probing; -1 is a free place.
    private let table: [Int32]

    /// One more than the highest id.
    var count: Int { isKnown.count }

    /// `count`: one more than the highest id. No two pieces have the same bytes.
    init(_ pieces: [(id: Int, bytes: [UInt8])], count: Int) {
        var byID = [[UInt8]?](repeating: nil, count: count)
        for piece in pieces { byID[piece.id] = piece.bytes }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(pieces.reduce(0) { $0 + $1.bytes.count })
        var starts: [UInt32] = [0]
        starts.reserveCapacity(count + 1)
        for piece in byID {
            bytes += piece ?? []
            starts.append(UInt32(bytes.count))
        }
        var size = 16
        while size < 2 * pieces.count { size *= 2 }
        var table = [Int32](repeating: -1, count: size)
        for (id, piece) in byID.enumerated() {
            guard let piece else { continue }
            var place = piece.withUnsafeBufferPointer(Self.hash) & (size - 1)
            while table[place] >= 0 { place = (place + 1) & (size - 1) }
            table[place] = Int32(id)
        }
        self.bytes = bytes
        self.starts = starts
        self.table = table
        isKnown = byID.map { $0 != nil }
    }

    /// The bytes of a piece; nil for an id that there is not.
    subscript(id: Int) -> ArraySlice<UInt8>? {
        guard isKnown.indices.contains(id), isKnown[id] else { return nil }
        return bytes[Int(starts[id])..<Int(starts[id + 1])]
    }

    func id(of piece: UnsafeBufferPointer<UInt8>) -> Int? {
        var place = Self.hash(piece) & (table.count - 1)
        while table[place] >= 0 {
            let id = Int(table[place])
            let start = Int(starts[id])
            if Int(starts[id + 1]) - start == piece.count,
                bytes[start..<(start + piece.count)].elementsEqual(piece)
            {
                return id
            }
            place = (place + 1) & (table.count - 1)
        }
        return nil
    }

    func id(of piece: String) -> Int? {
        Array(piece.utf8).withUnsafeBufferPointer(id(of:))
    }

    /// FNV-1a, 64 bits, with the high half folded in.
    private static func hash(_ piece: UnsafeBufferPointer<UInt8>) -> Int {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in piece { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        return Int(truncatingIfNeeded: (hash ^ (hash >> 32)) & 0x7FFF_FFFF)
    }
}

/// The merges of a vocabulary: two neighbours -> rank, the lowest of which joins first.
struct Merges: Sendable {
    private let keys: [UInt64]
    private let ranks: [Int32]
    /// What the merge of a rank gives.
    let results: [Int32]

    /// Of a pair that is there twice the last counts.
    init(_ merges: [(left: Int, right: Int, result: Int)]) {
        var size = 16
        while size < 2 * merges.count { size *= 2 }
        var keys = [UInt64](repeating: .max, count: size)
        var ranks = [Int32](repeating: -1, count: size)
        for (rank, merge) in merges.enumerated() {
            let key = Self.key(merge.left, merge.right)
            var place = Self.hash(key) & (size - 1)
            while keys[place] != .max, keys[place] != key { place = (place + 1) & (size - 1) }
            keys[place] = key
            ranks[place] = Int32(rank)
        }
        self.keys = keys
        self.ranks = ranks
        results = merges.map { Int32($0.result) }
    }

    func rank(_ left: Int32, _ right: Int32) -> Int32? {
        let key = Self.key(Int(left), Int(right))
        var place = Self.hash(key) & (keys.count - 1)
        while keys[place] != .max {
            if keys[place] == key { return ranks[place] }
            place = (place + 1) & (keys.count - 1)
        }
        return nil
    }

    private static func key(_ left: Int, _ right: Int) -> UInt64 {
        UInt64(left) << 32 | UInt64(right)
    }

    /// The high bits of a product with an odd number, 2^64 by the golden ratio.
    private static func hash(_ key: UInt64) -> Int {
        Int((key &* 0x9E37_79B9_7F4A_7C15) >> 34)
    }
}
