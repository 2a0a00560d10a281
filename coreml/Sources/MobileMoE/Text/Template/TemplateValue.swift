/// A text as Python has it: characters by their codes. Swift's own `String` counts "e" with an
/// accent as one character, equal to "é".
typealias Scalars = [Unicode.Scalar]

extension Scalars {
    init(_ text: String) { self = Array(text.unicodeScalars) }

    var string: String {
        var text = String.UnicodeScalarView()
        text.append(contentsOf: self)
        return String(text)
    }
}

/// A value of a chat template: what Jinja has of Python's.
enum TemplateValue: Sendable {
    /// What has no value, with the reason that an error gives.
    case undefined(String)
    case none
    case bool(Bool)
    case integer(Int)
    case number(Double)
    case text(Scalars)
    /// Python's lists and tuples, which differ only where one is written as a text.
    case list([TemplateValue])
    case dictionary(TemplateDictionary)
    case namespace(TemplateNamespace)
    case function(String)
    case macro(TemplateMacro)
    indirect case method(of: TemplateValue, name: String)

    static func text(_ text: String) -> TemplateValue { .text(Scalars(text)) }

    var isTrue: Bool {
        switch self {
        case .undefined, .none: false
        case .bool(let value): value
        case .integer(let value): value != 0
        case .number(let value): value != 0
        case .text(let text): !text.isEmpty
        case .list(let items): !items.isEmpty
        case .dictionary(let dictionary): !dictionary.entries.isEmpty
        case .namespace, .function, .macro, .method: true
        }
    }

    /// Python's name of the type, for messages.
    var typeName: String {
        switch self {
        case .undefined: "Undefined"
        case .none: "NoneType"
        case .bool: "bool"
        case .integer: "int"
        case .number: "float"
        case .text: "str"
        case .list: "list"
        case .dictionary: "dict"
        case .namespace: "Namespace"
        case .function, .macro, .method: "function"
        }
    }

    /// The number that an integer or a truth value is.
    var integer: Int? {
        switch self {
        case .integer(let value): value
        case .bool(let value): value ? 1 : 0
        default: nil
        }
    }

    /// Any number.
    var double: Double? {
        if case .number(let value) = self { value } else { integer.map(Double.init) }
    }

    var scalars: Scalars? { if case .text(let text) = self { text } else { nil } }

    /// What Python's `str` gives.
    var written: Scalars {
        switch self {
        case .undefined: []
        case .text(let text): text
        default: Scalars(shown)
        }
    }

    /// What Python's `repr` gives.
    var shown: String {
        switch self {
        case .undefined: return "Undefined"
        case .none: return "None"
        case .bool(let value): return value ? "True" : "False"
        case .integer(let value): return "\(value)"
        case .number(let value): return value.isFinite ? "\(value)" : value.isNaN ? "nan" : value < 0 ? "-inf" : "inf"
        case .text(let text): return Self.quoted(text)
        case .list(let items): return "[" + items.map(\.shown).joined(separator: ", ") + "]"
        case .dictionary(let dictionary):
            let entries = dictionary.entries.map { "\($0.key.shown): \($0.value.shown)" }
            return "{" + entries.joined(separator: ", ") + "}"
        case .namespace: return "<Namespace>"
        case .function(let name): return "<function \(name)>"
        case .macro(let macro): return "<Macro '\(macro.name)'>"
        case .method(_, let name): return "<method \(name)>"
        }
    }

    private static func quoted(_ text: Scalars) -> String {
        let quote: Unicode.Scalar = text.contains("'") && !text.contains("\"") ? "\"" : "'"
        var result = String(Character(quote))
        for scalar in text {
            switch scalar {
            case quote, "\\": result += "\\\(Character(scalar))"
            case "\n": result += "\\n"
            case "\r": result += "\\r"
            case "\t": result += "\\t"
            case _ where scalar.value < 0x20 || scalar.value == 0x7F:
                let digits = String(scalar.value, radix: 16)
                result += "\\x" + (digits.count == 1 ? "0" : "") + digits
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result + String(Character(quote))
    }
}

extension TemplateValue: Equatable {
    /// Python's ==.
    static func == (one: TemplateValue, other: TemplateValue) -> Bool {
        switch (one, other) {
        case (.undefined, .undefined), (.none, .none): true
        case (.text(let one), .text(let other)): one == other
        case (.list(let one), .list(let other)): one == other
        case (.dictionary(let one), .dictionary(let other)):
            one.entries.count == other.entries.count
                && one.entries.allSatisfy { entry in other[entry.key].map { $0 == entry.value } ?? false }
        case (.namespace(let one), .namespace(let other)): one === other
        case (.function(let one), .function(let other)): one == other
        case (.macro(let one), .macro(let other)): one === other
        default:
            if let one = one.integer, let other = other.integer {
                one == other
            } else if let one = one.double, let other = other.double {
                one == other
            } else {
                false
            }
        }
    }
}

/// Keys and values in the order in which they came.
struct TemplateDictionary: Sendable {
    private(set) var entries: [(key: TemplateValue, value: TemplateValue)] = []

    init() {}

    init(_ entries: [(String, TemplateValue)]) {
        self.entries = entries.map { (.text($0), $1) }
    }

    subscript(key: TemplateValue) -> TemplateValue? {
        get { entries.first { $0.key == key }?.value }
        set {
            if let place = entries.firstIndex(where: { $0.key == key }) {
                if let newValue { entries[place].value = newValue } else { entries.remove(at: place) }
            } else if let newValue {
                entries.append((key, newValue))
            }
        }
    }
}

/// Values that a template may set from within a loop. One run of a template has it alone.
final class TemplateNamespace: @unchecked Sendable {
    var values = TemplateDictionary()
}

/// A macro, with the variables that it sees. One run of a template has it alone.
final class TemplateMacro: @unchecked Sendable {
    let name: String
    let parameters: [(name: String, value: TemplateExpression?)]
    let body: [TemplateStatement]
    let scope: TemplateScope

    init(
        name: String, parameters: [(name: String, value: TemplateExpression?)],
        body: [TemplateStatement], scope: TemplateScope
    ) {
        self.name = name
        self.parameters = parameters
        self.body = body
        self.scope = scope
    }
}

/// Variables of a part of a template, within those around it.
final class TemplateScope {
    private var values: [String: TemplateValue] = [:]
    private let outer: TemplateScope?

    init(in outer: TemplateScope? = nil) { self.outer = outer }

    subscript(name: String) -> TemplateValue? {
        get { values[name] ?? outer?[name] }
        set { values[name] = newValue }
    }
}

/// Why a template cannot be read, or fails.
enum TemplateError: Error, Equatable {
    /// What a template raises of its own will.
    case refusal(String)
    case failure(String)

    static func undefined(_ reason: String) -> TemplateError { .failure(reason) }
}
