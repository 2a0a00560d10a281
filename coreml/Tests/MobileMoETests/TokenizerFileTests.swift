import Foundation
import Testing

@testable import MobileMoE

/// A small byte-level tokenizer.json, with parts of it replaced.
private func file(_ changes: [String: String] = [:]) -> String {
    var parts = [
        "normalizer": "null",
        "pre_tokenizer": #"{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}"#,
        "post_processor": "null",
        "decoder": #"{"type": "ByteLevel"}"#,
        "added_tokens": #"[{"id": 4, "content": "<|eot|>", "special": true, "normalized": false}]"#,
        "model": #"{"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": [["a", "b"]]}"#,
    ]
    parts.merge(changes) { $1 }
    return "{" + parts.map { "\"\($0)\": \($1)" }.joined(separator: ", ") + "}"
}

private func withFolder<Result>(
    _ files: [String: String], _ body: (URL) throws -> Result
) throws -> Result {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    for (name, content) in files {
        try Data(content.utf8).write(to: folder.appendingPathComponent(name))
    }
    return try body(folder)
}

private func open(_ changes: [String: String] = [:], vocabularySize: Int? = 5) throws -> CheckpointTokenizer {
    try withFolder(["tokenizer.json": file(changes)]) {
        try CheckpointTokenizer(folder: $0, vocabularySize: vocabularySize)
    }
}

@Test func aSmallTokenizerEncodes() throws {
    let tokenizer = try open()
    #expect(try tokenizer.encode("ab ba<|eot|>") == [2, 3, 1, 0])
    #expect(try tokenizer.encode(prompt: "ab<|eot|>") == [2, 4])
    #expect(tokenizer.decode([2, 4, 3]) == "ab ")
    #expect(tokenizer.decode([2, 4, 99], skippingSpecialTokens: false) == "ab<|eot|>\u{FFFD}")
    #expect(tokenizer.endOfAnswer == [4])
}

@Test(arguments: [
    (["normalizer": #"{"type": "NFKC"}"#], "the normalizer 'NFKC'"),
    (["normalizer": #"{"type": "Replace", "pattern": {"Regex": "x+"}, "content": ""}"#], "Replace"),
    (["pre_tokenizer": #"{"type": "Whitespace"}"#], "the pre-tokenizer 'Whitespace'"),
    (
        ["pre_tokenizer": #"{"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated"}"#],
        "Split with the pattern"
    ),
    (["post_processor": #"{"type": "RobertaProcessing"}"#], "the post-processor 'RobertaProcessing'"),
    (["decoder": #"{"type": "WordPiece"}"#], "the decoder 'WordPiece'"),
    (["decoder": "null"], "has no decoder"),
    (["decoder": #"{"type": "Fuse"}"#], "encodes bytes as letters"),
    (["model": #"{"type": "Unigram", "vocab": []}"#], "the model 'Unigram'"),
    (["model": "[]"], "describes no tokenizer"),
    (["model": #"{"type": "BPE", "vocab": {}, "merges": []}"#], "has no vocabulary"),
    (["model": #"{"type": "BPE", "vocab": {"a": -1}, "merges": []}"#], "the id -1"),
    (["model": #"{"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}"#], "to two pieces"),
    (["model": #"{"type": "BPE", "vocab": {"a": 7}, "merges": []}"#], "belongs to another model"),
    (["model": #"{"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}"#], "the merge 'a b'"),
    (["model": #"{"type": "BPE", "vocab": {"a": 0}, "merges": [7]}"#], "not of two pieces"),
    (["model": #"{"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "?"}"#], "no token '?'"),
    (
        ["model": #"{"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}"#],
        "end_of_word_suffix"
    ),
    (["added_tokens": #"[{"id": 4}]"#], "has no content"),
    (["added_tokens": "7"], "which is a list"),
])
func whatIsNotKnownIsNamed(_ changes: [String: String], _ sentence: String) throws {
    let error = try #require(throws: MobileMoEError.self) { try open(changes) }
    #expect(error.kind == .tokenizer)
    #expect(error.sentence.contains(sentence), "\(error)")
}

@Test func aFolderWithoutTokenizerAndOneWithCode() throws {
    let none = #expect(throws: MobileMoEError.self) {
        try withFolder([:]) { _ = try CheckpointTokenizer(folder: $0) }
    }
    #expect(none?.sentence.contains("has no tokenizer.json: copy it there") ?? false)
    let code = #expect(throws: MobileMoEError.self) {
        let config = #"{"auto_map": {"AutoTokenizer": ["x.Y", null]}}"#
        try withFolder(["tokenizer.json": file(), "tokenizer_config.json": config]) {
            _ = try CheckpointTokenizer(folder: $0)
        }
    }
    #expect(code?.sentence.contains("asks for code of its own") ?? false)
}

@Test func aBaseModelHasNoChat() throws {
    let error = #expect(throws: MobileMoEError.self) {
        try open().encode(chat: [ChatMessage(role: .user, content: "hi")])
    }
    #expect(error?.sentence.contains("it is a base model") ?? false)
}

/// Damaged files are errors or tokenizers, never crashes.
@Test func damagedFilesDoNotCrash() throws {
    var random = SystemRandomNumberGenerator()
    let whole = Array(file().utf8)
    let signs = Array("{}[]\",:0-19aeE\\u".utf8)
    for _ in 0..<300 {
        var bytes = whole
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            bytes[Int.random(in: bytes.indices, using: &random)] = signs.randomElement(using: &random)!
        }
        let content = String(decoding: bytes, as: UTF8.self)
        try withFolder(["tokenizer.json": content]) { folder in
            guard let tokenizer = try? CheckpointTokenizer(folder: folder) else { return }
            _ = tokenizer.decode(try tokenizer.encode("ab ba\n<|eot|> é"))
        }
    }
}

/// Nor do damaged templates, nor such as nest without end.
@Test func damagedTemplatesDoNotCrash() throws {
    var random = SystemRandomNumberGenerator()
    let whole = """
        {%- for m in messages if m.role %}{{ m['content'][1:-1] | trim ~ loop.index }}{% set x = {'a': [1]} %}
        {%- if x.a[0] is eq 1 %}{{ x | tojson(indent=2) }}{% else %}{{ 7 // 2 ** 3 % 4 }}{% endif %}{% endfor %}
        """
    let messages = [(role: Scalars("user"), content: Scalars("hello"))]
    let pieces = ["{{", "}}", "{%", "%}", "(", ")", "[", "]", "|", ".", "'", "-", " if ", "not", "9999999999", "~"]
    for _ in 0..<1500 {
        var text = whole
        for _ in 0..<Int.random(in: 1...3, using: &random) {
            let place = text.index(text.startIndex, offsetBy: Int.random(in: 0..<text.count, using: &random))
            if Bool.random(using: &random) { text.remove(at: place) }
            text.insert(contentsOf: pieces.randomElement(using: &random)!, at: place)
        }
        _ = try? ChatTemplate(text, specialTokens: [:]).text(of: messages)
    }
    for open in ["(", "[", "-", "not ", "x.", "x[", "x(", "{% if 1 %}", "1 + ", "1 if ", "x|"] {
        let nested = String(repeating: open, count: 50_000)
        let text = open.hasPrefix("{%") ? nested : "{{ \(nested)1 }}"
        let error = #expect(throws: MobileMoEError.self) {
            try ChatTemplate(text, specialTokens: [:]).text(of: messages)
        }
        #expect(error?.sentence.contains("The chat template fails") ?? false)
    }
}
