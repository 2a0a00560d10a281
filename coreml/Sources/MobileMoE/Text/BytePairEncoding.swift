/// Byte pair encoding of single words.
struct BytePairEncoding: Sendable {
    let vocabulary: Vocabulary
    let merges: Merges
    /// The ids of single bytes, where bytes are what words are made of; else words are made of
    /// characters.
    let byteIDs: [Int32]?
    /// The pieces "<0x00>" ... "<0xFF>" for characters that the vocabulary lacks; -1 is none.
    let fallbackIDs: [Int32]?
    /// The token of what has no other.
    let unknown: Int32?
    /// Whether neighbours without token become one `unknown`.
    let fusesUnknown: Bool
    /// Whether a word that is a piece is that piece, merges or not.
    let takesWholeWords: Bool

    /// Appends the ids of `word`.
    func encode(_ word: ArraySlice<UInt8>, into tokens: inout [Int]) {
        word.withUnsafeBufferPointer { word in
            if takesWholeWords, let id = vocabulary.id(of: word) {
                tokens.append(id)
                return
            }
            var symbols = Symbols(ids: units(of: word))
            symbols.merge(by: merges)
            tokens += symbols.left.lazy.map(Int.init)
        }
    }

    /// The ids of a word's bytes or characters before any merge.
    private func units(of word: UnsafeBufferPointer<UInt8>) -> [Int32] {
        var ids: [Int32] = []
        ids.reserveCapacity(word.count)
        var held: Int32?  // an unknown token that the next may join
        func add(_ id: Int32?) {
            if let id {
                if let unknown = held { ids.append(unknown) }
                held = nil
                ids.append(id)
            } else if let unknown {
                if let earlier = held, !fusesUnknown { ids.append(earlier) }
                held = unknown
            }
        }
        var start = 0
        while start < word.count {
            if let byteIDs {
                let id = byteIDs[Int(word[start])]
                add(id >= 0 ? id : nil)
                start += 1
                continue
            }
            let first = word[start]
            let length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
            let character = UnsafeBufferPointer(rebasing: word[start..<(start + length)])
            start += length
            if let id = vocabulary.id(of: character) {
                add(Int32(id))
            } else if let fallbackIDs, character.allSatisfy({ fallbackIDs[Int($0)] >= 0 }) {
                // A held unknown stays held, as `tokenizers` does it.
                ids += character.lazy.map { fallbackIDs[Int($0)] }
            } else {
                add(nil)
            }
        }
        if let held { ids.append(held) }
        return ids
    }
}

/// The symbols of a word, which join in the order of the merges' ranks, of one rank from the left.
private struct Symbols {
    private var ids: [Int32]
    private var next: [Int32]
    private var previous: [Int32]
    private var isJoined: [Bool]
    /// A binary heap of (rank, place) that may be out of date, lowest first.
    private var heap: [UInt64] = []

    init(ids: [Int32]) {
        self.ids = ids
        let count = Int32(ids.count)
        next = Array(1..<(count + 1))
        previous = Array(-1..<(count - 1))
        isJoined = Array(repeating: false, count: ids.count)
    }

    var left: [Int32] { zip(ids, isJoined).filter { !$1 }.map(\.0) }

    mutating func merge(by merges: Merges) {
        guard ids.count > 1 else { return }
        for place in 0..<(ids.count - 1) { offer(place, merges) }
        while let (rank, place) = takeLowest() {
            guard !isJoined[place] else { continue }
            let second = Int(next[place])
            guard second < ids.count,
                let now = merges.rank(ids[place], ids[second]),
                merges.results[Int(now)] == merges.results[rank]
            else { continue }  // a neighbour has joined another since
            ids[place] = merges.results[rank]
            isJoined[second] = true
            next[place] = next[second]
            if Int(next[second]) < ids.count { previous[Int(next[second])] = Int32(place) }
            if previous[place] >= 0 { offer(Int(previous[place]), merges) }
            offer(place, merges)
        }
    }

    /// Puts the merge of the symbol at `place` with the next, if there is one, on the heap.
    private mutating func offer(_ place: Int, _ merges: Merges) {
        let second = Int(next[place])
        guard second < ids.count, let rank = merges.rank(ids[place], ids[second]) else { return }
        heap.append(UInt64(rank) << 32 | UInt64(place))
        var child = heap.count - 1
        while child > 0, heap[child] < heap[(child - 1) / 2] {
            heap.swapAt(child, (child - 1) / 2)
            child = (child - 1) / 2
        }
    }

    private mutating func takeLowest() -> (rank: Int, place: Int)? {
        guard let lowest = heap.first, let last = heap.popLast() else { return nil }
        if !heap.isEmpty {
            heap[0] = last
            var parent = 0
            while true {
                var child = 2 * parent + 1
                guard child < heap.count else { break }
                if child + 1 < heap.count, heap[child + 1] < heap[child] { child += 1 }
                guard heap[child] < heap[parent] else { break }
                heap.swapAt(child, parent)
                parent = child
            }
        }
        return (Int(lowest >> 32), Int(lowest & 0xFFFF_FFFF))
    }
}
