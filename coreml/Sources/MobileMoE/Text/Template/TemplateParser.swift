/// Statements of a template from its tokens.
struct TemplateParser {
    var tokens: [TemplateToken]
    var at = 0
    var depth = 0

    /// Deeper than any template, and little for a thread's stack.
    static let mostDepth = 100

    static func statements(of template: String) throws(TemplateError) -> [TemplateStatement] {
        var parser = TemplateParser(tokens: try TemplateLexer.tokens(of: template))
        return try parser.statements(until: []).body
    }

    // MARK: Tokens

    var next: TemplateToken? { at < tokens.count ? tokens[at] : nil }

    func sees(_ token: TemplateToken) -> Bool { next == token }

    mutating func take(_ token: TemplateToken) -> Bool {
        guard next == token else { return false }
        at += 1
        return true
    }

    mutating func takeSign(_ sign: String) -> Bool { take(.sign(sign)) }

    mutating func takeWord(_ word: String) -> Bool { take(.name(word)) }

    mutating func expect(_ token: TemplateToken, _ what: String) throws(TemplateError) {
        guard take(token) else { throw .failure("\(what) is missing before \(shown(next))") }
    }

    mutating func expectName() throws(TemplateError) -> String {
        guard case .name(let name) = next else {
            throw .failure("a name is missing before \(shown(next))")
        }
        at += 1
        return name
    }

    func shown(_ token: TemplateToken?) -> String {
        switch token {
        case nil: "the end of the template"
        case .data: "text"
        case .outputStart: "'{{'"
        case .outputEnd: "'}}'"
        case .tagStart: "'{%'"
        case .tagEnd: "'%}'"
        case .name(let name): "'\(name)'"
        case .integer(let value): "'\(value)'"
        case .number(let value): "'\(value)'"
        case .text(let text): "'\(text.string)'"
        case .sign(let sign): "'\(sign)'"
        }
    }

    mutating func enter() throws(TemplateError) {
        depth += 1
        guard depth <= Self.mostDepth else {
            throw .failure("it nests more than \(Self.mostDepth) levels deep")
        }
    }

    // MARK: Statements

    /// The statements up to a tag that begins with one of `ends`, whose word is taken too.
    mutating func statements(
        until ends: [String]
    ) throws(TemplateError) -> (body: [TemplateStatement], end: String) {
        try enter()
        defer { depth -= 1 }
        var body: [TemplateStatement] = []
        while let token = next {
            at += 1
            switch token {
            case .data(let data): body.append(.data(data))
            case .outputStart:
                body.append(.output(try tupleOrExpression()))
                try expect(.outputEnd, "'}}'")
            case .tagStart:
                let word = try expectName()
                if ends.contains(word) { return (body, word) }
                body.append(try statement(word))
            default: throw .failure("there is \(shown(token)) where no tag is")
            }
        }
        guard ends.isEmpty else {
            throw .failure("a tag '\(ends.last!)' is missing at the end of the template")
        }
        return (body, "")
    }

    private mutating func endOfTag() throws(TemplateError) { try expect(.tagEnd, "'%}'") }

    private mutating func block(until end: String) throws(TemplateError) -> [TemplateStatement] {
        try endOfTag()
        let body = try statements(until: [end]).body
        try endOfTag()
        return body
    }

    private mutating func statement(_ word: String) throws(TemplateError) -> TemplateStatement {
        switch word {
        case "if": return try branches()
        case "for": return try loop()
        case "set": return try setting()
        case "macro":
            let name = try expectName()
            let parameters = try parameters()
            return .macro(name, parameters, try block(until: "endmacro"))
        case "filter":
            let filters = try filterNames()
            return .filtered(filters, try block(until: "endfilter"))
        case "with":
            var values: [(TemplateTarget, TemplateExpression)] = []
            while !sees(.tagEnd) {
                if !values.isEmpty { try expect(.sign(","), "a comma") }
                let target = try target()
                try expect(.sign("="), "'='")
                values.append((target, try expression()))
            }
            return .with(values, try block(until: "endwith"))
        case "generation": return .group(try block(until: "endgeneration"))
        case "break":
            try endOfTag()
            return .breakLoop
        case "continue":
            try endOfTag()
            return .continueLoop
        default: throw .failure("this package does not know its tag '\(word)'")
        }
    }

    private mutating func branches() throws(TemplateError) -> TemplateStatement {
        var branches: [(condition: TemplateExpression?, body: [TemplateStatement])] = []
        var condition: TemplateExpression? = try tupleOrExpression()
        while true {
            try endOfTag()
            let ends = condition == nil ? ["endif"] : ["elif", "else", "endif"]
            let (body, end) = try statements(until: ends)
            branches.append((condition, body))
            switch end {
            case "elif": condition = try tupleOrExpression()
            case "else": condition = nil
            default:
                try endOfTag()
                return .branches(branches)
            }
        }
    }

    private mutating func loop() throws(TemplateError) -> TemplateStatement {
        let target = try target()
        try expect(.name("in"), "'in'")
        let values = try tuple(withChoice: false)
        let condition = takeWord("if") ? try expression() : nil
        if sees(.name("recursive")) { throw .failure("this package does not know recursive loops") }
        try endOfTag()
        let (body, end) = try statements(until: ["else", "endfor"])
        var otherwise: [TemplateStatement] = []
        if end == "else" {
            try endOfTag()
            otherwise = try statements(until: ["endfor"]).body
        }
        try endOfTag()
        return .loop(target, values, if: condition, body, else: otherwise)
    }

    private mutating func setting() throws(TemplateError) -> TemplateStatement {
        let target = try target()
        if takeSign("=") {
            let value = try tupleOrExpression()
            try endOfTag()
            return .set(target, value)
        }
        let filters = takeSign("|") ? try filterNames() : []
        return .setBlock(target, try block(until: "endset"), filters: filters)
    }

    /// One or more names, of which one may be a namespace's.
    private mutating func target() throws(TemplateError) -> TemplateTarget {
        try enter()
        defer { depth -= 1 }
        var targets: [TemplateTarget] = []
        var isSeveral = false
        repeat {
            if takeSign("(") {
                targets.append(try target())
                try expect(.sign(")"), "')'")
            } else if case .name(let name) = next, !(isSeveral && name == "in") {
                at += 1
                targets.append(takeSign(".") ? .attribute(name, try expectName()) : .name(name))
            } else {
                break
            }
            if sees(.sign(",")) { isSeveral = true }
        } while takeSign(",")
        guard let first = targets.first else {
            throw .failure("a name is missing before \(shown(next))")
        }
        return isSeveral ? .several(targets) : first
    }

    private mutating func parameters() throws(TemplateError) -> [(name: String, value: TemplateExpression?)] {
        var parameters: [(name: String, value: TemplateExpression?)] = []
        try expect(.sign("("), "'('")
        while !takeSign(")") {
            if !parameters.isEmpty { try expect(.sign(","), "a comma") }
            let name = try expectName()
            parameters.append((name, takeSign("=") ? try expression() : nil))
        }
        return parameters
    }

    /// Filters in a row, the first without its '|'.
    private mutating func filterNames() throws(TemplateError) -> [(String, TemplateArguments)] {
        var filters: [(String, TemplateArguments)] = []
        repeat { filters.append(try filterName()) } while takeSign("|")
        return filters
    }

    mutating func filterName() throws(TemplateError) -> (String, TemplateArguments) {
        let name = try dottedName()
        guard TemplateFilters.names.contains(name) else {
            throw .failure("this package does not know its filter '\(name)'")
        }
        return (name, sees(.sign("(")) ? try arguments() : TemplateArguments())
    }

    mutating func dottedName() throws(TemplateError) -> String {
        var name = try expectName()
        while takeSign(".") { name += "." + (try expectName()) }
        return name
    }
}
