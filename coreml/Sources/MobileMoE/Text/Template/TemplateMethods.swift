/// The methods of Python's texts, lists and dictionaries that templates call. Those that would
/// change a value are none: transformers forbids them.
enum TemplateMethods {
    static let ofDictionaries: Set<String> = ["items", "keys", "values", "get", "copy"]
    static let ofLists: Set<String> = ["index", "count", "copy"]
    static let ofTexts: Set<String> = [
        "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "upper",
        "lower", "title", "capitalize", "replace", "find", "rfind", "index", "count", "join", "isdigit",
        "isalpha", "isalnum", "isspace", "isupper", "islower", "removeprefix", "removesuffix", "zfill",
    ]

    static func call(
        _ name: String, of object: TemplateValue, _ call: TemplateCall, _ run: TemplateRun
    ) throws(TemplateError) -> TemplateValue {
        switch object {
        case .text(let text): return try ofText(name, text, call, run)
        case .list(let items):
            guard let wanted = call.positional.first else { return object }
            if name == "count" { return .integer(items.count { $0 == wanted }) }
            guard let place = items.firstIndex(of: wanted) else {
                throw .failure("\(wanted.shown) is not in list")
            }
            return .integer(place)
        case .dictionary(let dictionary):
            switch name {
            case "items": return .list(dictionary.entries.map { .list([$0.key, $0.value]) })
            case "keys": return .list(dictionary.entries.map(\.key))
            case "values": return .list(dictionary.entries.map(\.value))
            case "get":
                guard let key = call.positional.first else { throw .failure("get needs a key") }
                return dictionary[key] ?? call.value(1, "default") ?? .none
            default: return object
            }
        case .integer(let place):  // the loop's
            guard !call.positional.isEmpty else { throw .failure("no items for cycling given") }
            return call.positional[place % call.positional.count]
        default: return object
        }
    }

    private static func ofText(
        _ name: String, _ text: Scalars, _ call: TemplateCall, _ run: TemplateRun
    ) throws(TemplateError) -> TemplateValue {
        func argument() throws(TemplateError) -> Scalars {
            guard let argument = try call.text(0, "") else { throw .failure("\(name) needs a text") }
            return argument
        }
        switch name {
        case "strip": return .text(text.stripped(try call.text(0, "")))
        case "lstrip": return .text(text.stripped(try call.text(0, ""), .left))
        case "rstrip": return .text(text.stripped(try call.text(0, ""), .right))
        case "split":
            let parts = try text.parts(
                at: try call.text(0, "sep"), most: try call.integer(1, "maxsplit"))
            return .list(parts.map { .text($0) })
        case "rsplit":
            let parts = try text.partsFromEnd(
                at: try call.text(0, "sep"), most: try call.integer(1, "maxsplit"))
            return .list(parts.map { .text($0) })
        case "splitlines": return .list(text.lines(keepingEnds: call.flag(0, "keepends")).map { .text($0) })
        case "startswith", "endswith":
            var affixes: [Scalars] = []
            if case .list(let items) = call.positional.first {
                affixes = items.compactMap(\.scalars)
            } else {
                affixes = [try argument()]
            }
            return .bool(
                affixes.contains {
                    name == "startswith" ? text.starts(with: $0) : text.suffix($0.count).elementsEqual($0)
                })
        case "upper": return .text(text.uppercased)
        case "lower": return .text(text.lowercased)
        case "title": return .text(text.titlecased)
        case "capitalize": return .text(text.capitalized)
        case "replace":
            guard let new = try call.text(1, "") else { throw .failure("replace needs two texts") }
            return .text(text.replacing(try argument(), by: new, most: try call.integer(2, "count")))
        case "find": return .integer(text.firstPlace(of: try argument()) ?? -1)
        case "rfind": return .integer(text.lastPlace(of: try argument()) ?? -1)
        case "index":
            guard let place = text.firstPlace(of: try argument()) else {
                throw .failure("substring not found")
            }
            return .integer(place)
        case "count":
            let part = try argument()
            guard !part.isEmpty else { return .integer(text.count + 1) }
            return .integer(try text.parts(at: part).count - 1)
        case "join":
            guard let values = call.positional.first else { throw .failure("join needs a list") }
            return .text(try joined(try run.items(of: values), by: text))
        case "removeprefix":
            let part = try argument()
            return .text(text.starts(with: part) ? Array(text[part.count...]) : text)
        case "removesuffix":
            let part = try argument()
            return .text(text.suffix(part.count).elementsEqual(part) ? Array(text.dropLast(part.count)) : text)
        case "zfill":
            guard let width = try call.integer(0, ""), width < 10_000 else { throw .failure("zfill needs a width") }
            let sign = text.first == "-" || text.first == "+" ? 1 : 0
            let zeros = repeatElement(Unicode.Scalar("0"), count: max(width - text.count, 0))
            return .text(Array(text[..<sign]) + zeros + text[sign...])
        default: return .bool(consists(text, of: name))
        }
    }

    /// `isdigit` and the like.
    private static func consists(_ text: Scalars, of name: String) -> Bool {
        func isNumeric(_ scalar: Unicode.Scalar) -> Bool {
            scalar.properties.numericType == .decimal || scalar.properties.numericType == .digit
        }
        func isLetter(_ scalar: Unicode.Scalar) -> Bool {
            switch scalar.properties.generalCategory {
            case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: true
            default: false
            }
        }
        guard !text.isEmpty else { return false }
        switch name {
        case "isdigit": return text.allSatisfy(isNumeric)
        case "isalpha": return text.allSatisfy(isLetter)
        case "isalnum":
            return text.allSatisfy { isLetter($0) || $0.properties.numericType != nil }
        case "isspace": return text.allSatisfy(isPythonSpace)
        case "isupper":
            return text.contains(where: \.properties.isUppercase)
                && !text.contains(where: \.properties.isLowercase)
        default:
            return text.contains(where: \.properties.isLowercase)
                && !text.contains(where: \.properties.isUppercase)
        }
    }

    /// Python's `join`, which takes texts alone.
    private static func joined(_ items: [TemplateValue], by separator: Scalars) throws(TemplateError) -> Scalars {
        var texts: [Scalars] = []
        for (place, item) in items.enumerated() {
            guard let text = item.scalars else {
                throw .failure("sequence item \(place): expected str instance, \(item.typeName) found")
            }
            texts.append(text)
        }
        return Array(texts.joined(separator: separator))
    }
}
