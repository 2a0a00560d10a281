/// One run of a template.
final class TemplateRun {
    private(set) var output: Scalars = []
    private var depth = 0
    private var steps = 0

    /// A template that nests deeper, in macros that call each other, has no end; and this is what
    /// the stack of a thread of an app takes.
    private static let mostDepth = 200
    /// A few seconds; Jinja would go on for as long as the template likes.
    private static let mostSteps = 5_000_000
    private static let longestOutput = 20_000_000

    enum Flow { case onward, breaking, continuing }

    func enter() throws(TemplateError) {
        depth += 1
        steps += 1
        guard depth <= Self.mostDepth else {
            throw .failure("it nests deeper than \(Self.mostDepth) steps: do macros call each other?")
        }
        guard steps <= Self.mostSteps else { throw .failure("it takes more than \(Self.mostSteps) steps") }
    }

    func leave() { depth -= 1 }

    private func write(_ text: Scalars) throws(TemplateError) {
        output += text
        guard output.count <= Self.longestOutput else {
            throw .failure("it writes more than \(Self.longestOutput) characters")
        }
    }

    /// What `body` writes, which is not written.
    func captured(_ body: () throws(TemplateError) -> Void) throws(TemplateError) -> Scalars {
        let before = output
        output = []
        defer { output = before }
        try body()
        return output
    }

    @discardableResult
    func run(_ statements: [TemplateStatement], _ scope: TemplateScope) throws(TemplateError) -> Flow {
        try enter()
        defer { leave() }
        for statement in statements {
            let flow = try run(statement, scope)
            if flow != .onward { return flow }
        }
        return .onward
    }

    private func run(_ statement: TemplateStatement, _ scope: TemplateScope) throws(TemplateError) -> Flow {
        switch statement {
        case .data(let data): try write(data)
        case .output(let expression): try write(try value(expression, scope).written)
        case .branches(let branches):
            for (condition, body) in branches {
                if let condition, !(try value(condition, scope).isTrue) { continue }
                return try run(body, scope)
            }
        case .loop(let target, let values, let condition, let body, let otherwise):
            try loop(target, values, condition, body, otherwise, scope)
        case .set(let target, let expression): try set(target, try value(expression, scope), scope)
        case .setBlock(let target, let body, let filters):
            let text = try captured { () throws(TemplateError) in
                _ = try run(body, TemplateScope(in: scope))
            }
            try set(target, try filtered(.text(text), filters, scope), scope)
        case .macro(let name, let parameters, let body):
            scope[name] = .macro(
                TemplateMacro(name: name, parameters: parameters, body: body, scope: scope))
        case .filtered(let filters, let body):
            let text = try captured { () throws(TemplateError) in
                _ = try run(body, TemplateScope(in: scope))
            }
            try write(try filtered(.text(text), filters, scope).written)
        case .with(let values, let body):
            let inner = TemplateScope(in: scope)
            for (target, expression) in values { try set(target, try value(expression, scope), inner) }
            return try run(body, inner)
        case .group(let body): return try run(body, scope)
        case .breakLoop: return .breaking
        case .continueLoop: return .continuing
        }
        return .onward
    }

    private func filtered(
        _ start: TemplateValue, _ filters: [(String, TemplateArguments)], _ scope: TemplateScope
    ) throws(TemplateError) -> TemplateValue {
        var value = start
        for (name, arguments) in filters {
            value = try TemplateFilters.apply(name, to: value, try evaluated(arguments, scope), self)
        }
        return value
    }

    private func set(
        _ target: TemplateTarget, _ value: TemplateValue, _ scope: TemplateScope
    ) throws(TemplateError) {
        switch target {
        case .name(let name): scope[name] = value
        case .attribute(let name, let attribute):
            guard case .namespace(let namespace) = scope[name] else {
                throw .failure("cannot assign attribute on non-namespace object '\(name)'")
            }
            namespace.values[.text(attribute)] = value
        case .several(let targets):
            let values = try items(of: value)
            guard values.count == targets.count else {
                throw .failure("\(values.count) values cannot be given to \(targets.count) names")
            }
            for (target, value) in zip(targets, values) { try set(target, value, scope) }
        }
    }

    private func loop(
        _ target: TemplateTarget, _ expression: TemplateExpression, _ condition: TemplateExpression?,
        _ body: [TemplateStatement], _ otherwise: [TemplateStatement], _ scope: TemplateScope
    ) throws(TemplateError) {
        var values = try items(of: try value(expression, scope))
        if let condition {
            var kept: [TemplateValue] = []
            for item in values {
                let inner = TemplateScope(in: scope)
                try set(target, item, inner)
                if try value(condition, inner).isTrue { kept.append(item) }
            }
            values = kept
        }
        if values.isEmpty { _ = try run(otherwise, scope) }
        let outerDepth = scope["loop"].flatMap { loop -> Int? in
            if case .dictionary(let loop) = loop { loop[.text("depth")]?.integer } else { nil }
        }
        for (place, item) in values.enumerated() {
            let inner = TemplateScope(in: scope)
            inner["loop"] = .dictionary(
                TemplateDictionary([
                    ("index0", .integer(place)),
                    ("index", .integer(place + 1)),
                    ("revindex0", .integer(values.count - place - 1)),
                    ("revindex", .integer(values.count - place)),
                    ("first", .bool(place == 0)),
                    ("last", .bool(place == values.count - 1)),
                    ("length", .integer(values.count)),
                    ("depth", .integer((outerDepth ?? 0) + 1)),
                    ("depth0", .integer(outerDepth ?? 0)),
                    ("previtem", place > 0 ? values[place - 1] : .undefined("there is no previous item")),
                    ("nextitem", place + 1 < values.count ? values[place + 1] : .undefined("there is no next item")),
                    ("cycle", .method(of: .integer(place), name: "loop.cycle")),
                ]))
            try set(target, item, inner)
            if try run(body, inner) == .breaking { break }
        }
    }

    func call(_ macro: TemplateMacro, _ arguments: TemplateCall) throws(TemplateError) -> TemplateValue {
        let inner = TemplateScope(in: macro.scope)
        guard arguments.positional.count <= macro.parameters.count else {
            throw .failure("macro '\(macro.name)' takes not more than \(macro.parameters.count) argument(s)")
        }
        for (key, _) in arguments.named.entries {
            let name = key.written.string
            guard !macro.parameters.contains(where: { $0.name == name }) else { continue }
            throw .failure("macro '\(macro.name)' takes no keyword argument '\(name)'")
        }
        for (place, parameter) in macro.parameters.enumerated() {
            if place < arguments.positional.count {
                inner[parameter.name] = arguments.positional[place]
            } else if let given = arguments.named[.text(parameter.name)] {
                inner[parameter.name] = given
            } else if let expression = parameter.value {
                inner[parameter.name] = try value(expression, inner)
            } else {
                inner[parameter.name] = .undefined("parameter '\(parameter.name)' was not provided")
            }
        }
        return .text(
            try captured { () throws(TemplateError) in _ = try run(macro.body, inner) })
    }

    /// What a loop over a value goes through.
    func items(of value: TemplateValue) throws(TemplateError) -> [TemplateValue] {
        switch value {
        case .undefined: return []
        case .list(let items): return items
        case .dictionary(let dictionary): return dictionary.entries.map(\.key)
        case .text(let text): return text.map { .text([$0]) }
        default: throw .failure("'\(value.typeName)' object is not iterable")
        }
    }
}

/// The arguments of a call.
struct TemplateCall {
    var positional: [TemplateValue] = []
    var named = TemplateDictionary()

    /// An argument by its place or its name; nil where it was not given.
    func value(_ place: Int, _ name: String) -> TemplateValue? {
        place < positional.count ? positional[place] : named[.text(name)]
    }

    func integer(_ place: Int, _ name: String) throws(TemplateError) -> Int? {
        guard let value = value(place, name) else { return nil }
        if case .none = value { return nil }
        guard let integer = value.integer else {
            throw .failure("'\(value.typeName)' object cannot be interpreted as an integer")
        }
        return integer
    }

    func text(_ place: Int, _ name: String) throws(TemplateError) -> Scalars? {
        guard let value = value(place, name) else { return nil }
        if case .none = value { return nil }
        guard let text = value.scalars else {
            throw .failure("a text belongs where '\(value.typeName)' is")
        }
        return text
    }

    func flag(_ place: Int, _ name: String) -> Bool { value(place, name)?.isTrue ?? false }
}
