// Stands in for swift-transformers' Tokenizers: the declarations that docs/ios.md uses.

import Foundation

public typealias Message = [String: any Sendable]

public protocol Tokenizer: Sendable {
    func applyChatTemplate(messages: [Message]) throws -> [Int]
    func decode(tokens: [Int]) -> String
}

struct Numbers: Tokenizer {
    func applyChatTemplate(messages: [Message]) throws -> [Int] {
        messages.flatMap { ($0["content"] as! String).split(separator: " ").map { Int($0)! } }
    }
    func decode(tokens: [Int]) -> String { tokens.map(String.init).joined(separator: " ") }
}

public enum AutoTokenizer {
    public static func from(modelFolder: URL) async throws -> Tokenizer {
        precondition(FileManager.default.fileExists(atPath: modelFolder.path))
        return Numbers()
    }
}
