/// Passes text on as soon as it cannot become part of a stop string.
///
/// The stop string that is complete first ends the text, whatever pieces the text came in; of two
/// complete at the same character, the one that began first. Compared by bytes, so that letters and
/// their accents are not held for others.
struct StopStrings {
    private let stop: [[UInt8]]
    private var held: [UInt8] = []
    private(set) var isFound = false

    init(_ stop: [String]) { self.stop = stop.map { Array($0.utf8) } }

    /// Takes in more text; -> what is now certain. Once `isFound`, that was the last of it.
    mutating func add(_ text: String) -> String {
        held += Array(text.utf8)
        var first: (end: Int, begin: Int)?
        for string in stop {
            guard let begin = find(string) else { continue }
            let found = (end: begin + string.count, begin: begin)
            if first.map({ found < $0 }) ?? true { first = found }
        }
        if let first {
            isFound = true
            return release(first.begin, andForget: true)
        }
        let longest = (stop.map(\.count).max() ?? 1) - 1
        var begin = max(0, held.count - longest)
        while begin < held.count, !stop.contains(where: { $0.starts(with: held[begin...]) }) {
            begin += 1
        }
        return release(begin, andForget: false)
    }

    /// The text still held back, now that no more will come.
    mutating func finish() -> String { release(held.count, andForget: true) }

    private mutating func release(_ count: Int, andForget: Bool) -> String {
        let text = String(decoding: held.prefix(count), as: UTF8.self)
        held = andForget ? [] : Array(held[count...])
        return text
    }

    private func find(_ string: [UInt8]) -> Int? {
        guard held.count >= string.count else { return nil }
        return (0...(held.count - string.count)).first { held[$0...].starts(with: string) }
    }
}
