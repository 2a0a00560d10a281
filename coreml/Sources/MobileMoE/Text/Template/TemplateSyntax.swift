/// An expression of a template.
indirect enum TemplateExpression: Sendable {
    case value(TemplateValue)
    case name(String)
    case list([TemplateExpression])
    case dictionary([(TemplateExpression, TemplateExpression)])
    case attribute(TemplateExpression, String)
    case item(TemplateExpression, TemplateExpression)
    case slice(TemplateExpression, TemplateExpression?, TemplateExpression?, TemplateExpression?)
    case call(TemplateExpression, TemplateArguments)
    case filter(TemplateExpression, String, TemplateArguments)
    case test(TemplateExpression, String, TemplateArguments)
    case not(TemplateExpression)
    case negative(TemplateExpression)
    case positive(TemplateExpression)
    case operation(String, TemplateExpression, TemplateExpression)
    case and(TemplateExpression, TemplateExpression)
    case or(TemplateExpression, TemplateExpression)
    /// A first value, and comparisons with those that follow: a < b < c.
    case comparisons(TemplateExpression, [(String, TemplateExpression)])
    case concatenation([TemplateExpression])
    case choice(TemplateExpression, if: TemplateExpression, else: TemplateExpression?)
}

struct TemplateArguments: Sendable {
    var positional: [TemplateExpression] = []
    var named: [(String, TemplateExpression)] = []
}

/// What a `set` or a loop gives a value to.
indirect enum TemplateTarget: Sendable {
    case name(String)
    case attribute(String, String)
    case several([TemplateTarget])
}

indirect enum TemplateStatement: Sendable {
    case data(Scalars)
    case output(TemplateExpression)
    case branches([(condition: TemplateExpression?, body: [TemplateStatement])])
    case loop(TemplateTarget, TemplateExpression, if: TemplateExpression?, [TemplateStatement], else: [TemplateStatement])
    case set(TemplateTarget, TemplateExpression)
    case setBlock(TemplateTarget, [TemplateStatement], filters: [(String, TemplateArguments)])
    case macro(String, [(name: String, value: TemplateExpression?)], [TemplateStatement])
    case filtered([(String, TemplateArguments)], [TemplateStatement])
    case with([(TemplateTarget, TemplateExpression)], [TemplateStatement])
    /// Statements in place: what marks an answer for training.
    case group([TemplateStatement])
    case breakLoop
    case continueLoop
}
