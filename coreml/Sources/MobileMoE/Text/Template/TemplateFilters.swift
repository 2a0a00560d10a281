import Foundation

/// Jinja's filters: `value | NAME`.
enum TemplateFilters {
    static let names: Set<String> = [
        "trim", "tojson", "length", "count", "default", "d", "join", "replace", "upper", "lower", "title",
        "capitalize", "first", "last", "list", "string", "int", "float", "abs", "round", "sum", "min",
        "max", "items", "dictsort", "sort", "reverse", "unique", "indent", "map", "select", "reject",
        "selectattr", "rejectattr", "safe", "escape", "e", "wordcount", "attr",
    ]

    static func apply(
        _ name: String, to value: TemplateValue, _ call: TemplateCall, _ run: TemplateRun
    ) throws(TemplateError) -> TemplateValue {
        switch name {
        case "trim": return .text(value.written.stripped(try call.text(0, "chars")))
        case "tojson": return .text(try TemplateJSON.text(of: value, call))
        case "length", "count":
            if case .text(let text) = value { return .integer(text.count) }
            return .integer(try run.items(of: value).count)
        case "default", "d":
            let isMissing = if case .undefined = value { true } else { false }
            let otherwise = call.value(0, "default_value") ?? .text("")
            return isMissing || (call.flag(1, "boolean") && !value.isTrue) ? otherwise : value
        case "join":
            var texts: [Scalars] = []
            for item in try run.items(of: value) {
                texts.append(try part(item, call.value(1, "attribute")).written)
            }
            return .text(Array(texts.joined(separator: call.value(0, "d")?.written ?? [])))
        case "replace":
            guard let old = call.value(0, "old"), let new = call.value(1, "new") else {
                throw .failure("the filter 'replace' needs two texts")
            }
            return .text(
                value.written.replacing(old.written, by: new.written, most: try call.integer(2, "count")))
        case "upper": return .text(value.written.uppercased)
        case "lower": return .text(value.written.lowercased)
        case "capitalize": return .text(value.written.capitalized)
        case "title": return .text(titled(value.written))
        case "string": return .text(value.written)
        case "safe": return value
        case "escape", "e": return .text(escaped(value.written))
        case "wordcount":
            return .integer(try value.written.parts(at: nil).count)
        case "indent": return .text(try indented(value.written, call))
        case "int", "float", "abs", "round": return try number(name, value, call)
        case "attr":
            guard let key = call.positional.first else { throw .failure("the filter 'attr' needs a name") }
            return try part(value, key)
        default: return try ofItems(name, value, call, run)
        }
    }

    /// Jinja's own, unlike Python's: capitals after blanks, hyphens and brackets.
    private static func titled(_ text: Scalars) -> Scalars {
        var begins = true
        return text.flatMap { scalar -> Scalars in
            defer { begins = isPythonSpace(scalar) || "-({[<".unicodeScalars.contains(scalar) }
            return Scalars(
                begins ? scalar.properties.uppercaseMapping : scalar.properties.lowercaseMapping)
        }
    }

    private static func escaped(_ text: Scalars) -> Scalars {
        text.flatMap { scalar -> Scalars in
            switch scalar {
            case "&": Scalars("&amp;")
            case "<": Scalars("&lt;")
            case ">": Scalars("&gt;")
            case "'": Scalars("&#39;")
            case "\"": Scalars("&#34;")
            default: [scalar]
            }
        }
    }

    private static func indented(_ text: Scalars, _ call: TemplateCall) throws(TemplateError) -> Scalars {
        var before = Scalars("    ")
        if let width = call.value(0, "width") {
            if let text = width.scalars {
                before = text
            } else if let count = width.integer, count < 1000 {
                before = Array(repeating: " ", count: max(count, 0))
            } else {
                throw .failure("the filter 'indent' needs a width")
            }
        }
        // Jinja adds a line end to keep the last line, and takes it away again.
        let lines = (text + ["\n"]).lines()
        let indentsBlank = call.flag(2, "blank")
        var result = lines.first ?? []
        for line in lines.dropFirst() {
            result += ["\n"] + (indentsBlank || !line.isEmpty ? before : []) + line
        }
        return call.flag(1, "first") ? before + result : result
    }

    private static func number(
        _ name: String, _ value: TemplateValue, _ call: TemplateCall
    ) throws(TemplateError) -> TemplateValue {
        switch name {
        case "int":
            if let integer = value.integer { return .integer(integer) }
            let text = value.scalars?.stripped().string
            if let text, let integer = Int(text) { return .integer(integer) }
            if let number = value.double ?? text.flatMap(Double.init), abs(number) < 9e18 {
                return .integer(Int(number))
            }
            return call.value(0, "default") ?? .integer(0)
        case "float":
            let text = value.scalars?.stripped().string
            let number = value.double ?? text.flatMap(Double.init)
            return number.map { .number($0) } ?? call.value(0, "default") ?? .number(0)
        case "abs":
            if let integer = value.integer {
                return integer < 0 ? try TemplateArithmetic.negative(value) : .integer(integer)
            }
            guard let number = value.double else {
                throw .failure("bad operand type for abs(): '\(value.typeName)'")
            }
            return .number(abs(number))
        default:
            guard let number = value.double, let digits = try call.integer(0, "precision") ?? 0 as Int?,
                abs(digits) < 300
            else { throw .failure("the filter 'round' needs a number") }
            let scale = pow(10, Double(digits))
            switch try call.text(1, "method")?.string ?? "common" {
            case "ceil": return .number((number * scale).rounded(.up) / scale)
            case "floor": return .number((number * scale).rounded(.down) / scale)
            default: return .number((number * scale).rounded(.toNearestOrEven) / scale)
            }
        }
    }

    /// A part of an item by its name, "a.b" or a number.
    private static func part(_ item: TemplateValue, _ key: TemplateValue?) throws(TemplateError) -> TemplateValue {
        guard let key else { return item }
        if case .none = key { return item }
        var value = item
        for name in key.written.string.split(separator: ".") {
            switch value {
            case .undefined(let reason): throw .undefined(reason)
            case .dictionary(let dictionary):
                value = dictionary[.text(String(name))] ?? .undefined("'dict object' has no attribute '\(name)'")
            case .list(let items):
                guard let place = Int(name), items.indices.contains(place) else {
                    return .undefined("'list object' has no element \(name)")
                }
                value = items[place]
            default: return .undefined("'\(value.typeName) object' has no attribute '\(name)'")
            }
        }
        return value
    }

    private static func ofItems(
        _ name: String, _ value: TemplateValue, _ call: TemplateCall, _ run: TemplateRun
    ) throws(TemplateError) -> TemplateValue {
        switch (name, value) {
        case ("items", .undefined): return .list([])
        case ("items", .dictionary), ("dictsort", .dictionary):
            var pairs = try run.items(of: try TemplateMethods.call("items", of: value, TemplateCall(), run))
            guard name == "dictsort" else { return .list(pairs) }
            let place = try call.text(1, "by")?.string == "value" ? 1 : 0
            pairs = try sorted(pairs, call.flag(0, "case_sensitive")) { pair in
                if case .list(let pair) = pair { pair[place] } else { pair }
            }
            return .list(call.flag(2, "reverse") ? pairs.reversed() : pairs)
        case ("items", _), ("dictsort", _):
            throw .failure("the filter '\(name)' needs a mapping, not '\(value.typeName)'")
        case ("reverse", .text(let text)): return .text(text.reversed())
        default: break
        }
        let items = try run.items(of: value)
        switch name {
        case "first": return items.first ?? .undefined("No first item, sequence was empty.")
        case "last": return items.last ?? .undefined("No last item, sequence was empty.")
        case "list": return .list(items)
        case "reverse": return .list(items.reversed())
        case "sum":
            var total = call.value(1, "start") ?? .integer(0)
            for item in items {
                total = try TemplateArithmetic.result("+", total, try part(item, call.value(0, "attribute")))
            }
            return total
        case "sort":
            let attribute = call.value(2, "attribute")
            var keys: [TemplateValue] = []
            for item in items { keys.append(try part(item, attribute)) }
            let places = try sorted(items.indices.map { .integer($0) }, call.flag(1, "case_sensitive")) {
                keys[$0.integer ?? 0]
            }
            let result = places.map { items[$0.integer ?? 0] }
            return .list(call.flag(0, "reverse") ? stableReversed(result, keys: places.map { keys[$0.integer ?? 0] }) : result)
        case "min", "max":
            let result = try sorted(items, call.flag(0, "case_sensitive")) { $0 }
            let end = name == "min" ? result.first : result.last
            return end ?? .undefined("No aggregated item, sequence was empty.")
        case "unique":
            var seen: [TemplateValue] = []
            var kept: [TemplateValue] = []
            for item in items {
                let key = folded(try part(item, call.value(1, "attribute")), call.flag(0, "case_sensitive"))
                guard !seen.contains(key) else { continue }
                seen.append(key)
                kept.append(item)
            }
            return .list(kept)
        case "map": return .list(try mapped(items, call, run))
        default: return .list(try selected(name, items, call))
        }
    }

    private static func folded(_ value: TemplateValue, _ caseSensitive: Bool) -> TemplateValue {
        if !caseSensitive, case .text(let text) = value { .text(text.lowercased) } else { value }
    }

    /// In the order of Python's comparisons, equal ones as they were.
    private static func sorted(
        _ items: [TemplateValue], _ caseSensitive: Bool, by key: (TemplateValue) -> TemplateValue
    ) throws(TemplateError) -> [TemplateValue] {
        let keys = items.map { folded(key($0), caseSensitive) }
        for pair in zip(keys, keys.dropFirst()) { _ = try TemplateArithmetic.order("<", pair.0, pair.1) }
        let places = items.indices.sorted { one, other in
            let order = (try? TemplateArithmetic.order("<", keys[one], keys[other])) ?? 0
            return order == 0 ? one < other : order < 0
        }
        return places.map { items[$0] }
    }

    /// Python sorts in reverse with equal ones as they were.
    private static func stableReversed(_ items: [TemplateValue], keys: [TemplateValue]) -> [TemplateValue] {
        var groups: [[TemplateValue]] = []
        for (place, item) in items.enumerated() {
            if place > 0, folded(keys[place], false) == folded(keys[place - 1], false) {
                groups[groups.count - 1].append(item)
            } else {
                groups.append([item])
            }
        }
        return groups.reversed().flatMap { $0 }
    }

    private static func mapped(
        _ items: [TemplateValue], _ call: TemplateCall, _ run: TemplateRun
    ) throws(TemplateError) -> [TemplateValue] {
        var result: [TemplateValue] = []
        if let attribute = call.named[.text("attribute")] {
            for item in items {
                let value = try part(item, attribute)
                if case .undefined = value, let other = call.named[.text("default")] {
                    result.append(other)
                } else {
                    result.append(value)
                }
            }
            return result
        }
        guard let filter = call.positional.first?.scalars?.string, names.contains(filter) else {
            throw .failure("the filter 'map' needs a filter's name or an attribute")
        }
        let inner = TemplateCall(positional: Array(call.positional.dropFirst()), named: call.named)
        for item in items { result.append(try apply(filter, to: item, inner, run)) }
        return result
    }

    private static func selected(
        _ name: String, _ items: [TemplateValue], _ call: TemplateCall
    ) throws(TemplateError) -> [TemplateValue] {
        let byAttribute = name.hasSuffix("attr")
        var arguments = call.positional[...]
        let attribute = byAttribute ? arguments.popFirst() : nil
        if byAttribute, attribute == nil { throw .failure("the filter '\(name)' needs an attribute") }
        let test = arguments.popFirst()?.written.string
        if let test, !TemplateTests.names.contains(test) {
            throw .failure("this package does not know its test '\(test)'")
        }
        let inner = TemplateCall(positional: Array(arguments), named: call.named)
        var kept: [TemplateValue] = []
        for item in items {
            let value = try part(item, attribute)
            let holds = if let test { try TemplateTests.holds(test, of: value, inner) } else { value.isTrue }
            if holds == name.hasPrefix("select") { kept.append(item) }
        }
        return kept
    }
}
