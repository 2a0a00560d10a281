/// A conversation's tokens by a chat template, in which the contents of messages stay text.
///
/// A template gives one text, in which "<|eot|>" of the template and "<|eot|>" typed by a user look
/// alike. So it is given contents with marks that no text has: one in place of each special token's
/// name, and one at each end of a content. Where they come out says what is text, and contents are
/// encoded apart from the template, as they are in training.
struct ChatTokens {
    let template: ChatTemplate
    /// The names of special tokens and their ids, the longest first: a mark has a place in this list.
    private let special: [(name: [UInt8], id: Int)]
    private let finder: PatternFinder
    private let encode: (String) -> [Int]

    /// Unicode's noncharacters, which are never text.
    private static let begin = Unicode.Scalar(0xFDD0 as UInt32)!
    private static let end = Unicode.Scalar(0xFDD1 as UInt32)!
    private static let name = Unicode.Scalar(0xFDD2 as UInt32)!

    /// `encode` gives the ids of plain text.
    init(_ template: ChatTemplate, special: [ExactText: Int], encode: @escaping (String) -> [Int]) {
        self.template = template
        self.special = special.sorted { one, other in
            let (one, other) = (Scalars(one.key.text), Scalars(other.key.text))
            return one.count == other.count
                ? one.lexicographicallyPrecedes(other) : one.count > other.count
        }.map { (Array($0.key.text.utf8), $0.value) }
        finder = PatternFinder(self.special.map(\.name))
        self.encode = encode
    }

    func tokens(of messages: [ChatMessage]) throws -> [Int] {
        let hidden = messages.map { (role: Scalars($0.role.rawValue), content: hide($0.content)) }
        var tokens: [Int] = []
        for (part, isContent) in Self.parts(try template.text(of: bounded(hidden))) {
            let text = Array(part.string.utf8)
            guard !isContent else {
                tokens += encode(show(text[...]))
                continue
            }
            var done = 0
            finder.forEachMatch(in: text) { number, range in
                tokens += encode(show(text[done..<range.lowerBound])) + [special[number].id]
                done = range.upperBound
            }
            tokens += encode(show(text[done...]))
        }
        return tokens
    }

    /// A content with marks for the names of special tokens in it.
    private func hide(_ content: String) -> Scalars {
        let marks = [Self.begin, Self.end, Self.name]
        let clean = Scalars(content).map { marks.contains($0) ? "\u{FFFD}" : $0 }
        let text = Array(clean.string.utf8)
        var hidden: Scalars = []
        var done = 0
        finder.forEachMatch(in: text) { number, range in
            hidden += Scalars(String(decoding: text[done..<range.lowerBound], as: UTF8.self))
            hidden += [Self.name] + Scalars("\(number)") + [Self.name]
            done = range.upperBound
        }
        return hidden + Scalars(String(decoding: text[done...], as: UTF8.self))
    }

    private func show(_ text: ArraySlice<UInt8>) -> String {
        let text = Scalars(String(decoding: text, as: UTF8.self))
        var shown: Scalars = []
        var place = 0
        while place < text.count {
            if text[place] == Self.name, let end = text[(place + 1)...].firstIndex(of: Self.name),
                let number = Int(Array(text[(place + 1)..<end]).string), special.indices.contains(number)
            {
                shown += Scalars(String(decoding: special[number].name, as: UTF8.self))
                place = end + 1
            } else {
                shown.append(text[place])
                place += 1
            }
        }
        return shown.string
    }

    private typealias Messages = [(role: Scalars, content: Scalars)]

    /// `messages` with marks at the ends of contents, if they leave the rest of the text as it is.
    ///
    /// A template may trim contents: marks are then put inside their outer blanks. One that looks at
    /// contents in other ways is given them without marks.
    private func bounded(_ messages: Messages) throws -> Messages {
        let plain = try template.text(of: messages)
        for change in [Self.outside, Self.inside] {
            let marked = messages.map { (role: $0.role, content: change($0.content)) }
            if let text = try? template.text(of: marked), Self.plain(text) == plain { return marked }
        }
        return messages
    }

    private static func outside(_ text: Scalars) -> Scalars { [begin] + text + [end] }

    private static func inside(_ text: Scalars) -> Scalars {
        let inner = text.stripped()
        let before = inner.isEmpty ? 0 : text.count - text.stripped(nil, .left).count
        return Array(text[..<before]) + [begin] + inner + [end] + Array(text[(before + inner.count)...])
    }

    /// The parts of what a template wrote, and whether each is a content.
    private static func parts(_ text: Scalars) -> [(Scalars, isContent: Bool)] {
        var parts: [(Scalars, isContent: Bool)] = []
        var done = 0
        var begun: Int?
        for (place, scalar) in text.enumerated() {
            if scalar == begin {
                begun = place
            } else if scalar == end, let start = begun {
                parts.append((plain(Array(text[done..<start])), false))
                parts.append((plain(Array(text[start..<place])), true))
                done = place + 1
                begun = nil
            }
        }
        return parts + [(plain(Array(text[done...])), false)]
    }

    private static func plain(_ text: Scalars) -> Scalars { text.filter { $0 != begin && $0 != end } }
}
