/// What Python's `str` does, on characters by their codes.
extension Scalars {
    /// Where `part` stands first, from `start` on; nil for nowhere.
    func firstPlace(of part: Scalars, from start: Int = 0) -> Int? {
        guard part.count <= count, start <= count - part.count else { return nil }
        guard let first = part.first else { return start }
        for place in start...(count - part.count) where self[place] == first {
            if self[place..<(place + part.count)].elementsEqual(part) { return place }
        }
        return nil
    }

    func lastPlace(of part: Scalars) -> Int? {
        guard part.count <= count else { return nil }
        for place in stride(from: count - part.count, through: 0, by: -1) {
            if self[place..<(place + part.count)].elementsEqual(part) { return place }
        }
        return nil
    }

    func replacing(_ old: Scalars, by new: Scalars, most: Int? = nil) -> Scalars {
        let most = most.flatMap { $0 < 0 ? nil : $0 } ?? .max
        var result: Scalars = []
        var start = 0
        if old.isEmpty {
            for (place, scalar) in enumerated() { result += (place < most ? new : []) + [scalar] }
            return count < most ? result + new : result
        }
        var done = 0
        while done < most, let place = firstPlace(of: old, from: start) {
            result += self[start..<place] + new
            start = place + old.count
            done += 1
        }
        return result + self[start...]
    }

    enum Side { case left, right, both }

    /// Without the characters of `set`, or blanks, at its ends.
    func stripped(_ set: Scalars? = nil, _ side: Side = .both) -> Scalars {
        func goes(_ scalar: Unicode.Scalar) -> Bool { set?.contains(scalar) ?? isPythonSpace(scalar) }
        var (start, end) = (0, count)
        if side != .right { while start < end, goes(self[start]) { start += 1 } }
        if side != .left { while end > start, goes(self[end - 1]) { end -= 1 } }
        return Array(self[start..<end])
    }

    /// Python's `split`: at `separator`, or at runs of blanks, at most so many times.
    func parts(at separator: Scalars?, most: Int? = nil) throws(TemplateError) -> [Scalars] {
        let most = most.flatMap { $0 < 0 ? nil : $0 } ?? .max
        var parts: [Scalars] = []
        var start = 0
        guard let separator else {
            while true {
                while start < count, isPythonSpace(self[start]) { start += 1 }
                guard start < count else { return parts }
                if parts.count == most { return parts + [Array(self[start...]).stripped(nil, .right)] }
                var end = start
                while end < count, !isPythonSpace(self[end]) { end += 1 }
                parts.append(Array(self[start..<end]))
                start = end
            }
        }
        guard !separator.isEmpty else { throw .failure("empty separator") }
        while parts.count < most, let place = firstPlace(of: separator, from: start) {
            parts.append(Array(self[start..<place]))
            start = place + separator.count
        }
        return parts + [Array(self[start...])]
    }

    /// Python's `rsplit`.
    func partsFromEnd(at separator: Scalars?, most: Int? = nil) throws(TemplateError) -> [Scalars] {
        let turned = separator.map { Scalars($0.reversed()) }
        return try Scalars(reversed()).parts(at: turned, most: most).reversed().map { $0.reversed() }
    }

    /// Python's `splitlines`.
    func lines(keepingEnds: Bool = false) -> [Scalars] {
        var lines: [Scalars] = []
        var line: Scalars = []
        var place = 0
        while place < count {
            let scalar = self[place]
            let isEnd: Bool =
                switch scalar.value {
                case 0x0A...0x0D, 0x1C...0x1E, 0x85, 0x2028, 0x2029: true
                default: false
                }
            guard isEnd else {
                line.append(scalar)
                place += 1
                continue
            }
            let isPair = scalar == "\r" && place + 1 < count && self[place + 1] == "\n"
            if keepingEnds { line += isPair ? [scalar, "\n"] : [scalar] }
            lines.append(line)
            line = []
            place += isPair ? 2 : 1
        }
        return line.isEmpty ? lines : lines + [line]
    }

    var uppercased: Scalars { flatMap { Scalars($0.properties.uppercaseMapping) } }
    var lowercased: Scalars { flatMap { Scalars($0.properties.lowercaseMapping) } }

    var capitalized: Scalars {
        guard let first else { return [] }
        return Scalars(first.properties.titlecaseMapping) + Array(self[1...]).lowercased
    }

    /// Python's `str.title`: a capital after each character that is no letter.
    var titlecased: Scalars {
        var follows = false
        return flatMap { scalar -> Scalars in
            defer { follows = scalar.properties.isCased }
            return Scalars(
                follows ? scalar.properties.lowercaseMapping : scalar.properties.titlecaseMapping)
        }
    }
}
