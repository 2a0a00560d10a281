import Foundation

extension TemplateRun {
    func evaluated(_ arguments: TemplateArguments, _ scope: TemplateScope) throws(TemplateError) -> TemplateCall {
        var call = TemplateCall()
        for expression in arguments.positional { call.positional.append(try value(expression, scope)) }
        for (name, expression) in arguments.named { call.named[.text(name)] = try value(expression, scope) }
        return call
    }

    func value(_ expression: TemplateExpression, _ scope: TemplateScope) throws(TemplateError) -> TemplateValue {
        try enter()
        defer { leave() }
        switch expression {
        case .value(let value): return value
        case .name(let name):
            return scope[name] ?? (Self.functions.contains(name) ? .function(name) : .undefined("'\(name)' is undefined"))
        case .list(let items):
            var values: [TemplateValue] = []
            for item in items { values.append(try value(item, scope)) }
            return .list(values)
        case .dictionary(let entries):
            var dictionary = TemplateDictionary()
            for (key, entry) in entries { dictionary[try value(key, scope)] = try value(entry, scope) }
            return .dictionary(dictionary)
        case .attribute(let object, let name): return try attribute(try value(object, scope), name)
        case .item(let object, let key): return try item(try value(object, scope), try value(key, scope))
        case .slice(let object, let start, let end, let step):
            return try slice(
                try value(object, scope), try bound(start, scope), try bound(end, scope), try bound(step, scope))
        case .call(let function, let arguments):
            return try call(try value(function, scope), try evaluated(arguments, scope))
        case .filter(let object, let name, let arguments):
            let object = try value(object, scope)
            return try TemplateFilters.apply(name, to: object, try evaluated(arguments, scope), self)
        case .test(let object, let name, let arguments):
            let object = try value(object, scope)
            return .bool(try TemplateTests.holds(name, of: object, try evaluated(arguments, scope)))
        case .not(let inner): return .bool(!(try value(inner, scope).isTrue))
        case .negative(let inner): return try TemplateArithmetic.negative(try value(inner, scope))
        case .positive(let inner):
            let number = try value(inner, scope)
            guard number.double != nil else { throw .failure("bad operand type for unary +: '\(number.typeName)'") }
            return number
        case .operation(let sign, let left, let right):
            return try TemplateArithmetic.result(sign, try value(left, scope), try value(right, scope))
        case .and(let left, let right):
            let first = try value(left, scope)
            return first.isTrue ? try value(right, scope) : first
        case .or(let left, let right):
            let first = try value(left, scope)
            return first.isTrue ? first : try value(right, scope)
        case .comparisons(let first, let others):
            var left = try value(first, scope)
            for (sign, expression) in others {
                let right = try value(expression, scope)
                guard try TemplateArithmetic.holds(sign, left, right) else { return .bool(false) }
                left = right
            }
            return .bool(true)
        case .concatenation(let parts):
            var text: Scalars = []
            for part in parts { text += try value(part, scope).written }
            return .text(text)
        case .choice(let first, let condition, let otherwise):
            if try value(condition, scope).isTrue { return try value(first, scope) }
            guard let otherwise else {
                return .undefined("the inline if-expression evaluated to false and no else section was defined")
            }
            return try value(otherwise, scope)
        }
    }

    private func bound(_ expression: TemplateExpression?, _ scope: TemplateScope) throws(TemplateError) -> Int? {
        guard let expression else { return nil }
        let bound = try value(expression, scope)
        if case .none = bound { return nil }
        guard let integer = bound.integer else {
            throw .failure("slice indices must be integers or None, not '\(bound.typeName)'")
        }
        return integer
    }

    private func attribute(_ object: TemplateValue, _ name: String) throws(TemplateError) -> TemplateValue {
        guard !name.hasPrefix("__") else {
            return .undefined("access to attribute '\(name)' of '\(object.typeName)' object is unsafe")
        }
        switch object {
        case .undefined(let reason): throw .undefined(reason)
        case .dictionary(let dictionary):
            if TemplateMethods.ofDictionaries.contains(name) { return .method(of: object, name: name) }
            return dictionary[.text(name)] ?? missing(object, name)
        case .namespace(let namespace): return namespace.values[.text(name)] ?? missing(object, name)
        case .text where TemplateMethods.ofTexts.contains(name): return .method(of: object, name: name)
        case .list where TemplateMethods.ofLists.contains(name): return .method(of: object, name: name)
        default: return missing(object, name)
        }
    }

    private func missing(_ object: TemplateValue, _ name: String) -> TemplateValue {
        .undefined("'\(object.typeName) object' has no attribute '\(name)'")
    }

    private func item(_ object: TemplateValue, _ key: TemplateValue) throws(TemplateError) -> TemplateValue {
        switch object {
        case .undefined(let reason): throw .undefined(reason)
        case .dictionary(let dictionary):
            if let value = dictionary[key] { return value }
        case .list(let items):
            if let place = key.integer {
                let place = place < 0 ? place + items.count : place
                return items.indices.contains(place)
                    ? items[place] : .undefined("'list object' has no element \(key.shown)")
            }
        case .text(let text):
            if let place = key.integer {
                let place = place < 0 ? place + text.count : place
                return text.indices.contains(place)
                    ? .text([text[place]]) : .undefined("'str object' has no element \(key.shown)")
            }
        default: break
        }
        if let name = key.scalars { return try attribute(object, name.string) }
        return .undefined("'\(object.typeName) object' has no element \(key.shown)")
    }

    /// Python's slices.
    private func slice(
        _ object: TemplateValue, _ start: Int?, _ end: Int?, _ step: Int?
    ) throws(TemplateError) -> TemplateValue {
        let step = step ?? 1
        guard step != 0 else { throw .failure("slice step cannot be zero") }
        func places(_ count: Int) -> [Int] {
            func clipped(_ bound: Int?, _ otherwise: Int) -> Int {
                guard let bound else { return otherwise }
                let place = bound < 0 ? bound.addingReportingOverflow(count).partialValue : bound
                return step > 0 ? min(max(place, 0), count) : min(max(place, -1), count - 1)
            }
            let first = clipped(start, step > 0 ? 0 : count - 1)
            let last = clipped(end, step > 0 ? count : -1)
            return Array(Swift.stride(from: first, to: last, by: step))
        }
        switch object {
        case .undefined(let reason): throw .undefined(reason)
        case .list(let items): return .list(places(items.count).map { items[$0] })
        case .text(let text): return .text(places(text.count).map { text[$0] })
        default: throw .failure("'\(object.typeName)' object is not subscriptable")
        }
    }

    // MARK: Functions

    private static let functions: Set<String> = [
        "range", "namespace", "dict", "raise_exception", "strftime_now",
    ]

    private func call(_ function: TemplateValue, _ arguments: TemplateCall) throws(TemplateError) -> TemplateValue {
        switch function {
        case .undefined(let reason): throw .undefined(reason)
        case .macro(let macro): return try call(macro, arguments)
        case .method(let object, let name): return try TemplateMethods.call(name, of: object, arguments, self)
        case .function(let name): return try call(name, arguments)
        default: throw .failure("'\(function.typeName)' object is not callable")
        }
    }

    private func call(_ name: String, _ arguments: TemplateCall) throws(TemplateError) -> TemplateValue {
        switch name {
        case "raise_exception":
            throw .refusal((arguments.value(0, "message") ?? .none).written.string)
        case "strftime_now":
            guard let format = try arguments.text(0, "format") else { throw .failure("strftime_now needs a format") }
            return .text(Self.now(format.string))
        case "range": return .list(try range(arguments).map { .integer($0) })
        default:
            var dictionary = TemplateDictionary()
            if case .dictionary(let given) = arguments.positional.first { dictionary = given }
            for (name, value) in arguments.named.entries { dictionary[name] = value }
            guard name == "namespace" else { return .dictionary(dictionary) }
            let namespace = TemplateNamespace()
            namespace.values = dictionary
            return .namespace(namespace)
        }
    }

    private func range(_ arguments: TemplateCall) throws(TemplateError) -> [Int] {
        var bounds: [Int] = []
        for place in arguments.positional.indices {
            guard let bound = try arguments.integer(place, "") else {
                throw .failure("'NoneType' object cannot be interpreted as an integer")
            }
            bounds.append(bound)
        }
        guard (1...3).contains(bounds.count) else { throw .failure("range takes one to three numbers") }
        let step = bounds.count == 3 ? bounds[2] : 1
        guard step != 0 else { throw .failure("range() arg 3 must not be zero") }
        let (first, last) = bounds.count == 1 ? (0, bounds[0]) : (bounds[0], bounds[1])
        let most = 100_000  // Jinja's own limit
        let count = (Double(last) - Double(first)) / Double(step)
        guard count <= Double(most) else { throw .failure("range has more than \(most) numbers") }
        return Array(Swift.stride(from: first, to: last, by: step))
    }

    private static func now(_ format: String) -> String {
        var now = time(nil)
        var parts = tm()
        localtime_r(&now, &parts)
        var text = [CChar](repeating: 0, count: 512)
        let count = strftime(&text, text.count, format, &parts)
        return String(decoding: text[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
