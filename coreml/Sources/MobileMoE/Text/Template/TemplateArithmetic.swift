import Foundation

/// Python's operators on the values of a template.
enum TemplateArithmetic {
    static func negative(_ value: TemplateValue) throws(TemplateError) -> TemplateValue {
        if let integer = value.integer {
            guard integer != .min else { throw tooLarge }
            return .integer(-integer)
        }
        guard let number = value.double else {
            throw .failure("bad operand type for unary -: '\(value.typeName)'")
        }
        return .number(-number)
    }

    private static let tooLarge = TemplateError.failure("a number is too large")
    /// A text that is repeated without end would fill the memory.
    private static let longest = 20_000_000

    static func result(
        _ sign: String, _ left: TemplateValue, _ right: TemplateValue
    ) throws(TemplateError) -> TemplateValue {
        for case .undefined(let reason) in [left, right] { throw .undefined(reason) }
        switch (sign, left, right) {
        case ("+", .text(let left), .text(let right)): return .text(left + right)
        case ("+", .list(let left), .list(let right)): return .list(left + right)
        case ("*", .text(let text), .integer(let count)), ("*", .integer(let count), .text(let text)):
            guard text.isEmpty || count <= longest / text.count else { throw tooLarge }
            return .text(Array(repeatElement(text, count: max(count, 0)).joined()))
        case ("*", .list(let items), .integer(let count)), ("*", .integer(let count), .list(let items)):
            guard items.isEmpty || count <= longest / items.count else { throw tooLarge }
            return .list(Array(repeatElement(items, count: max(count, 0)).joined()))
        case ("%", .text, _):
            throw .failure("this package does not know '%' after a text")
        default: break
        }
        if let left = left.integer, let right = right.integer {
            if let result = try integers(sign, left, right) { return result }
        }
        guard let one = left.double, let other = right.double else {
            throw .failure(
                "unsupported operand type(s) for \(sign): '\(left.typeName)' and '\(right.typeName)'")
        }
        if ["/", "//", "%"].contains(sign), other == 0 { throw .failure("division by zero") }
        switch sign {
        case "+": return .number(one + other)
        case "-": return .number(one - other)
        case "*": return .number(one * other)
        case "/": return .number(one / other)
        case "//": return .number((one / other).rounded(.down))
        case "%":
            let rest = fmod(one, other)
            return .number(rest != 0 && (rest < 0) != (other < 0) ? rest + other : rest)
        default: return .number(pow(one, other))
        }
    }

    /// The result of whole numbers, if it is whole.
    private static func integers(
        _ sign: String, _ left: Int, _ right: Int
    ) throws(TemplateError) -> TemplateValue? {
        var (value, isTooLarge) = (0, false)
        switch sign {
        case "+": (value, isTooLarge) = left.addingReportingOverflow(right)
        case "-": (value, isTooLarge) = left.subtractingReportingOverflow(right)
        case "*": (value, isTooLarge) = left.multipliedReportingOverflow(by: right)
        case "//", "%":
            guard right != 0 else { throw .failure("division by zero") }
            guard right != -1 else { return sign == "%" ? .integer(0) : try negative(.integer(left)) }
            let rest = left % right
            let isBelow = rest != 0 && (rest < 0) != (right < 0)
            value = sign == "%" ? (isBelow ? rest + right : rest) : (isBelow ? left / right - 1 : left / right)
        case "**":
            guard right >= 0 else { return nil }
            value = 1
            for _ in 0..<min(right, 64) where !isTooLarge {
                (value, isTooLarge) = value.multipliedReportingOverflow(by: left)
            }
            if right > 64, ![0, 1, -1].contains(left) { isTooLarge = true }
            if right > 64, left == -1 { value = right % 2 == 0 ? 1 : -1 }
        default: return nil
        }
        guard !isTooLarge else { throw tooLarge }
        return .integer(value)
    }

    static func holds(
        _ sign: String, _ left: TemplateValue, _ right: TemplateValue
    ) throws(TemplateError) -> Bool {
        switch sign {
        case "==": return left == right
        case "!=": return left != right
        case "in": return try contains(right, left)
        case "not in": return try !contains(right, left)
        default:
            let order = try order(sign, left, right)
            return switch sign {
            case "<": order < 0
            case "<=": order <= 0
            case ">": order > 0
            default: order >= 0
            }
        }
    }

    private static func contains(
        _ whole: TemplateValue, _ part: TemplateValue
    ) throws(TemplateError) -> Bool {
        switch whole {
        case .undefined: return false
        case .list(let items): return items.contains(part)
        case .dictionary(let dictionary): return dictionary[part] != nil
        case .text(let text):
            guard let part = part.scalars else {
                throw .failure("'in <string>' requires string as left operand, not \(part.typeName)")
            }
            return text.firstPlace(of: part) != nil
        default: throw .failure("argument of type '\(whole.typeName)' is not iterable")
        }
    }

    /// Below, at or above 0 as `left` comes before, with or after `right`.
    static func order(
        _ sign: String, _ left: TemplateValue, _ right: TemplateValue
    ) throws(TemplateError) -> Int {
        for case .undefined(let reason) in [left, right] { throw .undefined(reason) }
        if let one = left.scalars, let other = right.scalars {
            return one == other ? 0 : one.lexicographicallyPrecedes(other) ? -1 : 1
        }
        if case .list(let one) = left, case .list(let other) = right {
            for (a, b) in zip(one, other) where a != b { return try order(sign, a, b) }
            return one.count - other.count
        }
        guard let one = left.double, let other = right.double else {
            throw .failure(
                "'\(sign)' not supported between instances of '\(left.typeName)' and '\(right.typeName)'")
        }
        return one == other ? 0 : one < other ? -1 : 1
    }
}
