/// A model that is ready to run, whatever computes it.
public protocol Engine: Sendable {
    /// Token ids are 0 to `vocabularySize` - 1.
    var vocabularySize: Int { get }
    /// The tokens that end an answer, by the model's own files; a tokenizer may know more.
    var endOfAnswer: Set<Int> { get }
    /// What is loaded, for a person: sizes, form, and where it runs.
    var summary: String { get }
    /// A new session, without tokens.
    func makeSession() async throws -> any ModelSession
}

/// Throws for tokens that cannot be fed at `position`; for whoever writes an engine.
public func checkTokens(
    _ tokens: [Int], vocabularySize: Int, position: Int, context: Int
) throws {
    guard !tokens.isEmpty else { throw MobileMoEError(.input, "There is no token to feed.") }
    if let stranger = tokens.first(where: { !(0..<vocabularySize).contains($0) }) {
        throw MobileMoEError(
            .tokenizer,
            "There is a token \(stranger), but the model knows 0 to \(vocabularySize - 1): it is of "
                + "another model's tokenizer.")
    }
    guard tokens.count <= context - position else {
        throw MobileMoEError(
            .input, "\(position + tokens.count) tokens do not fit into a context of \(context).")
    }
}
