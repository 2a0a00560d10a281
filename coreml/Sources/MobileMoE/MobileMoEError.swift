import Foundation

/// What went wrong, as one sentence for a person: what, where, and what to do.
public struct MobileMoEError: Error, Equatable, Sendable, CustomStringConvertible, LocalizedError {
    /// The part that failed; an app may show another text, or retry, by it.
    public enum Kind: Sendable {
        /// A file or folder is missing, damaged, or not a checkpoint that this package runs.
        case checkpoint
        /// The tokenizer cannot be read or does not fit the model.
        case tokenizer
        /// Options or input of a call are wrong: an empty message, too long a prompt.
        case input
        /// The device has too little memory for the model and its cache.
        case memory
        /// The CPU kernel refused or failed.
        case kernel
        /// Another answer is being written.
        case busy
    }

    public let kind: Kind
    public let sentence: String

    public init(_ kind: Kind, _ sentence: String) {
        self.kind = kind
        self.sentence = sentence
    }

    public var description: String { sentence }
    public var errorDescription: String? { sentence }
}
