import Foundation
import Synchronization

/// An answer, written while it is read: `for try await piece in answer`.
///
/// The pieces joined are the answer: each character is whole, nothing of a stop string is in it, no
/// space is removed from it. Leaving the loop, or cancelling its task, ends the answer. Two answers
/// of one model at once throw `busy`. Each loop over it begins anew.
public struct Answer: AsyncSequence, Sendable {
    public typealias Element = String

    let makeRun: @Sendable () -> AnswerRun
    let box = UsageBox()

    /// What the last loop over it cost; nil before it has ended.
    public var usage: Usage? { box.usage.withLock { $0 } }

    /// The same, token by token.
    public var steps: AnswerSteps { AnswerSteps(answer: self) }

    /// All of it.
    public var text: String {
        get async throws {
            var text = ""
            for try await piece in self { text += piece }
            return text
        }
    }

    public func makeAsyncIterator() -> Iterator { Iterator(run: makeRun(), box: box) }

    public struct Iterator: AsyncIteratorProtocol {
        let run: AnswerRun
        let box: UsageBox

        /// The next piece that is not empty.
        public mutating func next() async throws -> String? {
            while let step = try await run.next(box) {
                if !step.text.isEmpty { return step.text }
            }
            return nil
        }
    }
}

/// The tokens of an answer, each with the text that became certain with it.
public struct AnswerSteps: AsyncSequence, Sendable {
    public struct Element: Sendable, Equatable {
        public let token: Int
        /// Often less than the token's own text, or none.
        public let text: String
        /// The routed experts by which the token was found, a list for each layer: those that the token
        /// before it chose. nil for engines that cannot tell.
        public let experts: [[Int]]?
    }

    let answer: Answer

    public func makeAsyncIterator() -> Iterator {
        Iterator(run: answer.makeRun(), box: answer.box)
    }

    public struct Iterator: AsyncIteratorProtocol {
        let run: AnswerRun
        let box: UsageBox

        public mutating func next() async throws -> Element? { try await run.next(box) }
    }
}

final class UsageBox: Sendable {
    let usage = Mutex<Usage?>(nil)
}
