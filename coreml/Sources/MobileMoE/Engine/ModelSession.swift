/// One conversation of an engine: tokens go in, scores of the next token come out.
///
/// The CPU engine and Core ML have one each, and chat, sampling and measuring work on either. A session
/// serves one call at a time and throws `MobileMoEError` of the kind `busy` for a second one.
public protocol ModelSession: AnyObject, Sendable {
    /// The most tokens that it holds, those of the answer included.
    var context: Int { get }
    /// How many tokens it holds.
    var position: Int { get async }
    /// Appends `tokens`, one or more, and returns the score of each token of the vocabulary as the next.
    ///
    /// After an error, or when the task is cancelled (`CancellationError`), the session holds what it
    /// held before.
    func feed(_ tokens: [Int]) async throws -> [Float]
    /// Forgets all tokens from `position` on.
    func rewind(to position: Int) async throws
}
