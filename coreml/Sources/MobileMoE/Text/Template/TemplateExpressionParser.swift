extension TemplateParser {
    /// Counts what nests to the left, as a + b + c does.
    private func oneMore(_ count: inout Int) throws(TemplateError) {
        count += 1
        guard count <= Self.mostDepth else {
            throw .failure("it has more than \(Self.mostDepth) steps in a row")
        }
    }

    /// What stands in `{{ }}`: an expression, or several with commas, which are a list.
    mutating func tupleOrExpression() throws(TemplateError) -> TemplateExpression {
        try tuple(withChoice: true)
    }

    mutating func tuple(withChoice: Bool) throws(TemplateError) -> TemplateExpression {
        var items: [TemplateExpression] = []
        var isSeveral = false
        while true {
            if isSeveral, endsTuple { break }
            items.append(withChoice ? try expression() : try orExpression())
            guard takeSign(",") else { break }
            isSeveral = true
        }
        return isSeveral ? .list(items) : items[0]
    }

    private var endsTuple: Bool {
        switch next {
        case nil, .outputEnd, .tagEnd, .sign(")"), .name("if"), .name("recursive"): true
        default: false
        }
    }

    mutating func expression() throws(TemplateError) -> TemplateExpression {
        try enter()
        defer { depth -= 1 }
        var value = try orExpression()
        while takeWord("if") {
            let condition = try orExpression()
            let otherwise = takeWord("else") ? try expression() : nil
            value = .choice(value, if: condition, else: otherwise)
        }
        return value
    }

    mutating func orExpression() throws(TemplateError) -> TemplateExpression {
        var left = try andExpression()
        var count = 0
        while takeWord("or") {
            try oneMore(&count)
            left = .or(left, try andExpression())
        }
        return left
    }

    private mutating func andExpression() throws(TemplateError) -> TemplateExpression {
        var left = try notExpression()
        var count = 0
        while takeWord("and") {
            try oneMore(&count)
            left = .and(left, try notExpression())
        }
        return left
    }

    private mutating func notExpression() throws(TemplateError) -> TemplateExpression {
        try enter()
        defer { depth -= 1 }
        return takeWord("not") ? .not(try notExpression()) : try comparison()
    }

    private mutating func comparison() throws(TemplateError) -> TemplateExpression {
        let first = try sum()
        var others: [(String, TemplateExpression)] = []
        while true {
            if case .sign(let sign) = next, ["==", "!=", "<", "<=", ">", ">="].contains(sign) {
                at += 1
                others.append((sign, try sum()))
            } else if takeWord("in") {
                others.append(("in", try sum()))
            } else if sees(.name("not")), at + 1 < tokens.count, tokens[at + 1] == .name("in") {
                at += 2
                others.append(("not in", try sum()))
            } else {
                return others.isEmpty ? first : .comparisons(first, others)
            }
        }
    }

    private mutating func sum() throws(TemplateError) -> TemplateExpression {
        var left = try concatenation()
        var count = 0
        while case .sign(let sign) = next, sign == "+" || sign == "-" {
            at += 1
            try oneMore(&count)
            left = .operation(sign, left, try concatenation())
        }
        return left
    }

    private mutating func concatenation() throws(TemplateError) -> TemplateExpression {
        var parts = [try product()]
        while takeSign("~") { parts.append(try product()) }
        return parts.count == 1 ? parts[0] : .concatenation(parts)
    }

    private mutating func product() throws(TemplateError) -> TemplateExpression {
        var left = try power()
        var count = 0
        while case .sign(let sign) = next, ["*", "/", "//", "%"].contains(sign) {
            at += 1
            try oneMore(&count)
            left = .operation(sign, left, try power())
        }
        return left
    }

    private mutating func power() throws(TemplateError) -> TemplateExpression {
        var left = try unary(withFilters: true)
        var count = 0
        while takeSign("**") {
            try oneMore(&count)
            left = .operation("**", left, try unary(withFilters: true))
        }
        return left
    }

    private mutating func unary(withFilters: Bool) throws(TemplateError) -> TemplateExpression {
        try enter()
        defer { depth -= 1 }
        var value: TemplateExpression
        if takeSign("-") {
            value = .negative(try unary(withFilters: false))
        } else if takeSign("+") {
            value = .positive(try unary(withFilters: false))
        } else {
            value = try primary()
        }
        value = try postfixed(value)
        return withFilters ? try filtered(value) : value
    }

    private mutating func primary() throws(TemplateError) -> TemplateExpression {
        guard let token = next else { throw .failure("a value is missing at the end") }
        at += 1
        switch token {
        case .name("true"), .name("True"): return .value(.bool(true))
        case .name("false"), .name("False"): return .value(.bool(false))
        case .name("none"), .name("None"): return .value(.none)
        case .name(let name): return .name(name)
        case .integer(let value): return .value(.integer(value))
        case .number(let value): return .value(.number(value))
        case .text(var text):
            while case .text(let more) = next {
                text += more
                at += 1
            }
            return .value(.text(text))
        case .sign("("):
            if takeSign(")") { return .list([]) }
            let value = try tupleOrExpression()
            try expect(.sign(")"), "')'")
            return value
        case .sign("["):
            var items: [TemplateExpression] = []
            while !takeSign("]") {
                if !items.isEmpty { try expect(.sign(","), "a comma") }
                if takeSign("]") { break }
                items.append(try expression())
            }
            return .list(items)
        case .sign("{"):
            var entries: [(TemplateExpression, TemplateExpression)] = []
            while !takeSign("}") {
                if !entries.isEmpty { try expect(.sign(","), "a comma") }
                if takeSign("}") { break }
                let key = try expression()
                try expect(.sign(":"), "':'")
                entries.append((key, try expression()))
            }
            return .dictionary(entries)
        default: throw .failure("there is \(shown(token)) where a value belongs")
        }
    }

    private mutating func postfixed(_ start: TemplateExpression) throws(TemplateError) -> TemplateExpression {
        var value = start
        var count = 0
        while true {
            if takeSign(".") {
                if case .integer(let place) = next {
                    at += 1
                    value = .item(value, .value(.integer(place)))
                } else {
                    value = .attribute(value, try expectName())
                }
            } else if takeSign("[") {
                value = try subscripted(value)
            } else if sees(.sign("(")) {
                value = .call(value, try arguments())
            } else {
                return value
            }
            try oneMore(&count)
        }
    }

    private mutating func subscripted(_ value: TemplateExpression) throws(TemplateError) -> TemplateExpression {
        var bounds: [TemplateExpression?] = [nil]
        while !takeSign("]") {
            if takeSign(":") {
                bounds.append(nil)
            } else {
                guard bounds[bounds.count - 1] == nil else {
                    throw .failure("']' is missing before \(shown(next))")
                }
                bounds[bounds.count - 1] = try expression()
            }
        }
        switch bounds.count {
        case 1:
            guard let item = bounds[0] else { throw .failure("a subscript is empty") }
            return .item(value, item)
        case 2, 3: return .slice(value, bounds[0], bounds[1], bounds.count == 3 ? bounds[2] : nil)
        default: throw .failure("a slice has more than three parts")
        }
    }

    mutating func arguments() throws(TemplateError) -> TemplateArguments {
        var arguments = TemplateArguments()
        try expect(.sign("("), "'('")
        var isFirst = true
        while !takeSign(")") {
            if !isFirst { try expect(.sign(","), "a comma") }
            if !isFirst, takeSign(")") { break }
            isFirst = false
            if sees(.sign("*")) || sees(.sign("**")) {
                throw .failure("this package does not know '*' before an argument")
            }
            if case .name(let name) = next, at + 1 < tokens.count, tokens[at + 1] == .sign("=") {
                at += 2
                arguments.named.append((name, try expression()))
            } else {
                guard arguments.named.isEmpty else {
                    throw .failure("an argument without a name follows one with a name")
                }
                arguments.positional.append(try expression())
            }
        }
        return arguments
    }

    private mutating func filtered(_ start: TemplateExpression) throws(TemplateError) -> TemplateExpression {
        var value = start
        var count = 0
        while true {
            if takeSign("|") {
                let (name, arguments) = try filterName()
                value = .filter(value, name, arguments)
            } else if takeWord("is") {
                value = try tested(value)
            } else if sees(.sign("(")) {
                value = .call(value, try arguments())
            } else {
                return value
            }
            try oneMore(&count)
        }
    }

    private mutating func tested(_ value: TemplateExpression) throws(TemplateError) -> TemplateExpression {
        let isNegated = takeWord("not")
        let name = try testName()
        guard TemplateTests.names.contains(name) else {
            throw .failure("this package does not know its test '\(name)'")
        }
        var arguments = TemplateArguments()
        if sees(.sign("(")) {
            arguments = try self.arguments()
        } else if beginsArgument {
            arguments.positional = [try postfixed(try primary())]
        }
        let test = TemplateExpression.test(value, name, arguments)
        return isNegated ? .not(test) : test
    }

    private mutating func testName() throws(TemplateError) -> String {
        if case .sign(let sign) = next, ["==", "!=", "<", "<=", ">", ">="].contains(sign) {
            throw .failure("a test's name is missing before '\(sign)'")
        }
        return try dottedName()
    }

    private var beginsArgument: Bool {
        switch next {
        case .name(let name): !["else", "or", "and", "is", "if", "not", "in"].contains(name)
        case .text, .integer, .number, .sign("["), .sign("{"): true
        default: false
        }
    }
}
