import Foundation
import Testing

@testable import MobileMoE

/// Tokenizers with what `tokenizers` makes of texts and tokens, written by
/// tests/swift/test_swift_tokenizer.py.
private let folder = ProcessInfo.processInfo.environment["MOBILEMOE_TOKENIZER_CASES"]

@Suite(.enabled(if: folder != nil, "tests/swift/test_swift_tokenizer.py writes the cases"))
struct TokenizerCases {
    static let kinds = folder.map { (try? FileManager.default.contentsOfDirectory(atPath: $0)) ?? [] }

    @Test(arguments: kinds ?? []) func agree(_ kind: String) throws {
        let path = "\(folder!)/\(kind)"
        let tokenizer = try CheckpointTokenizer(folder: URL(fileURLWithPath: path))
        let cases = try #require(try readJSON("\(path)/cases.json").object)
        #expect(tokenizer.beginning == cases["beginning"]?.integer)
        #expect(tokenizer.endOfAnswer.sorted() == ids(cases["ends"]))

        var wrong = 0
        for item in try #require(cases["texts"]?.array) {
            let text = try #require(item.object?["text"]?.string)
            let plain = try tokenizer.encode(text)
            let prompt = try tokenizer.encode(prompt: text)
            if plain != ids(item.object?["plain"]) || prompt != ids(item.object?["prompt"]) {
                wrong += 1
                if wrong < 5 {
                    Issue.record("\(text.debugDescription): \(plain) \(ids(item.object?["plain"]))")
                    Issue.record("prompt: \(prompt) \(ids(item.object?["prompt"]))")
                }
            }
        }
        #expect(wrong == 0)

        for item in try #require(cases["tokens"]?.array?.map(\.object)) {
            let tokens = ids(item?["ids"])
            let inText = try #require(item?["stream"]?.string)
            if let whole = item?["whole"]?.string, let kept = item?["kept"]?.string {
                expectSame(tokenizer.decode(tokens, skippingSpecialTokens: false), whole, tokens)
                expectSame(tokenizer.decode(tokens), kept, tokens)
            }
            var stream = tokenizer.makeStream()
            let pieces = tokens.map { stream.append($0) } + [stream.finish()]
            expectSame(pieces.joined(), inText, tokens)
        }
    }

    private func ids(_ value: JSON?) -> [Int] { value?.array?.compactMap(\.integer) ?? [] }

    /// Swift's == holds texts for equal whose characters are spelled differently.
    private func expectSame(_ text: String, _ expected: String, _ tokens: [Int]) {
        #expect(
            text.utf8.elementsEqual(expected.utf8),
            "\(text.debugDescription), not \(expected.debugDescription) for \(tokens)")
    }
}
