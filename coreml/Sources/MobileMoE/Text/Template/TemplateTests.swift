/// Jinja's tests: `value is NAME`.
enum TemplateTests {
    static let names: Set<String> = [
        "defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true", "false",
        "mapping", "iterable", "sequence", "callable", "eq", "equalto", "ne", "lt", "lessthan", "le", "gt",
        "greaterthan", "ge", "in", "odd", "even", "divisibleby", "upper", "lower", "sameas",
    ]

    static func holds(
        _ name: String, of value: TemplateValue, _ call: TemplateCall
    ) throws(TemplateError) -> Bool {
        switch name {
        case "defined", "undefined":
            if case .undefined = value { return name == "undefined" }
            return name == "defined"
        case "none": if case .none = value { return true }
        case "string": return value.scalars != nil
        case "boolean": if case .bool = value { return true }
        case "true": if case .bool(true) = value { return true }
        case "false": if case .bool(false) = value { return true }
        case "integer": if case .integer = value { return true }
        case "float": if case .number = value { return true }
        case "number": return value.double != nil
        case "mapping": if case .dictionary = value { return true }
        case "iterable", "sequence":
            switch value {
            case .text, .list, .dictionary, .undefined: return true
            default: return false
            }
        case "callable":
            switch value {
            case .function, .macro, .method: return true
            default: return false
            }
        case "odd", "even", "divisibleby":
            guard let number = value.integer else {
                throw .failure("'\(value.typeName)' object is no whole number")
            }
            guard name == "divisibleby" else { return (number % 2 == 0) == (name == "even") }
            guard let divisor = try call.integer(0, "num"), divisor != 0 else {
                throw .failure("division by zero")
            }
            return divisor == -1 || number % divisor == 0
        case "upper": return value.written.uppercased == value.written && value.written.contains(where: \.properties.isCased)
        case "lower": return value.written.lowercased == value.written && value.written.contains(where: \.properties.isCased)
        default:
            guard let other = call.positional.first else {
                throw .failure("the test '\(name)' needs a value to compare with")
            }
            let signs = [
                "eq": "==", "equalto": "==", "ne": "!=", "lt": "<", "lessthan": "<", "le": "<=", "gt": ">",
                "greaterthan": ">", "ge": ">=", "in": "in",
            ]
            if name == "sameas" { return value.typeName == other.typeName && value == other }
            return try TemplateArithmetic.holds(signs[name]!, value, other)
        }
        return false
    }
}
