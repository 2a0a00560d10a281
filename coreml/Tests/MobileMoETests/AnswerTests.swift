import Foundation
import Testing

@testable import MobileMoE

/// A letter for each token.
struct LetterTokenizer: MobileMoE.Tokenizer {
    var beginning: Int? = 1
    var endOfAnswer: Set<Int> = []

    static let letters = (0..<96).map { Character(Unicode.Scalar(UInt32(0x100 + $0))!) }

    func encode(_ text: String) throws -> [Int] {
        try text.map {
            guard let id = Self.letters.firstIndex(of: $0) else {
                throw MobileMoEError(.tokenizer, "\($0) is no letter.")
            }
            return id
        }
    }
    func encode(prompt text: String) throws -> [Int] { [1] + (try encode(text)) }
    func encode(chat messages: [ChatMessage]) throws -> [Int] {
        try [1] + messages.flatMap { try [3] + encode($0.content) + [4] } + [5]
    }
    func decode(_ tokens: [Int], skippingSpecialTokens: Bool) -> String {
        String(tokens.map { Self.letters[$0] })
    }
    func makeStream() -> any TokenStream { Stream() }

    struct Stream: TokenStream {
        func append(_ token: Int) -> String { String(LetterTokenizer.letters[token]) }
        func finish() -> String { "" }
    }
}

@Suite struct AnswerTests {
    let folder: TemporaryFolder
    let engine: CPUEngine

    init() throws {
        var tiny = try TinyCheckpoint(seed: 5)
        tiny.config["eos_token_id"] = [Int]()
        folder = try tiny.write()
        engine = try CPUEngine(folder: folder.url, options: CPUOptions(precision: .exact, threads: 2))
    }

    private func model(_ tokenizer: LetterTokenizer? = LetterTokenizer()) async throws -> MobileMoEModel {
        try await MobileMoEModel(engine: engine, tokenizer: tokenizer)
    }

    private func user(_ ids: Int...) -> ChatMessage {
        ChatMessage(role: .user, content: String(ids.map { LetterTokenizer.letters[$0] }))
    }

    /// By the session alone.
    private func greedy(_ prompt: [Int], _ count: Int) async throws -> [Int] {
        let session = try engine.session()
        var logits = try await session.feed(prompt)
        var tokens: [Int] = []
        for _ in 0..<count {
            tokens.append(logits.indices.max { logits[$0] < logits[$1] }!)
            logits = try await session.feed([tokens.last!])
        }
        return tokens
    }

    @Test func greedyTextIsTheLikeliestTokens() async throws {
        let wanted = try await greedy([1, 3, 9, 4, 5], 20)
        let answer = try await model().chat([user(9)], GenerationOptions(maxTokens: 20, ignoresEnd: true))
        #expect(answer.usage == nil)
        var found: [Int] = []
        var text = ""
        for try await step in answer.steps {
            found.append(step.token)
            text += step.text
        }
        #expect(found == wanted)
        #expect(text == LetterTokenizer().decode(wanted))
        #expect(try await answer.text == text)  // again, from the beginning
        let usage = try #require(answer.usage)
        #expect(usage.finishReason == .maxTokens && usage.generatedTokens == 20)
        #expect(usage.promptTokens == 1 && usage.reusedTokens == 4)
        #expect(usage.peakMemory > 1_000_000 && usage.tokensPerSecond! > 0)
    }

    @Test func aConversationReusesItsBeginning() async throws {
        let model = try await model()
        let options = GenerationOptions(maxTokens: 6, ignoresEnd: true)
        let first = model.chat([user(9, 8)], options)
        let reply = try await first.text
        #expect(first.usage!.promptTokens == 6 && first.usage!.reusedTokens == 0)
        let messages = [user(9, 8), ChatMessage(role: .assistant, content: reply), user(7)]
        let second = model.chat(messages, options)
        let text = try await second.text
        // [1 3 9 8 4] is shared; there 5 begins the answer, here 3 the next message.
        #expect(second.usage!.reusedTokens == 5)
        let fresh = try await self.model().chat(messages, options).text
        #expect(text == fresh)
    }

    @Test func theEndsOfAnAnswer() async throws {
        let tokens = try await greedy([1, 3, 9, 4, 5], 12)
        let letters = tokens.map { String(LetterTokenizer.letters[$0]) }
        // The first token that did not come before.
        let end = try #require(tokens.indices.first { $0 > 1 && !tokens[..<$0].contains(tokens[$0]) })
        var tokenizer = LetterTokenizer()
        tokenizer.endOfAnswer = [tokens[end], 5000]
        let ended = try await model(tokenizer).chat([user(9)])
        #expect(try await ended.text == letters[..<end].joined())
        #expect(ended.usage!.finishReason == .endToken && ended.usage!.generatedTokens == end + 1)

        var tiny = try TinyCheckpoint(seed: 5)
        tiny.config["eos_token_id"] = tokens[end]
        let other = try tiny.write()
        try other.write(Array("{\"eos_token_id\": [\(tokens[0]), 7]}".utf8), "generation_config.json")
        let options = CPUOptions(precision: .exact, threads: 1)
        let engine = try CPUEngine(folder: other.url, options: options)
        #expect(engine.endOfAnswer == [tokens[end], tokens[0], 7])

        let stop = letters[end - 1] + letters[end]
        let stopped = try await model().chat([user(9)], GenerationOptions(stop: [stop]))
        let before = letters.joined().components(separatedBy: stop)[0]
        #expect(try await stopped.text == before)
        #expect(stopped.usage!.finishReason == .stopString)

        let small = CPUOptions(precision: .exact, threads: 1, context: 9)
        let narrow = try await MobileMoEModel(
            engine: CPUEngine(folder: folder.url, options: small), tokenizer: LetterTokenizer())
        let full = narrow.chat([user(9)], GenerationOptions(ignoresEnd: true))
        #expect(try await full.text == letters[..<4].joined())
        #expect(full.usage!.finishReason == .context)
    }

    @Test func withoutATokenizer() async throws {
        let answer = try await model(nil).generate(
            tokens: [1, 3, 9, 4, 5], GenerationOptions(maxTokens: 5, ignoresEnd: true))
        var found: [Int] = []
        for try await step in answer.steps { found.append(step.token) }
        #expect(found == (try await greedy([1, 3, 9, 4, 5], 5)))
        let refusal = await sentence { _ = try await self.model(nil).generate("a").text }
        #expect(refusal.contains("opened without a tokenizer"))
    }

    @Test func whatCannotBeAnswered() async throws {
        let model = try await model()
        let long = ChatMessage(role: .user, content: String(repeating: LetterTokenizer.letters[9], count: 125))
        for (answer, why) in [
            (model.chat([]), "There is no message to answer."),
            (model.chat([user()]), "The message is empty"),
            (model.chat([ChatMessage(role: .user, content: " \n")]), "The message is empty"),
            (model.chat([ChatMessage(role: .assistant, content: "a")]), "is of the assistant"),
            (model.chat([long]), "The prompt has 129 tokens, but the context is 128"),
            (model.chat([ChatMessage(role: .user, content: "z")]), "z is no letter."),
            (model.generate(""), "The prompt is empty"),
            (model.generate(tokens: []), "The prompt is empty"),
            (model.generate(tokens: [96]), "a token 96, but the model knows 0 to 95: it is of another model"),
            (model.generate(tokens: [-1]), "a token -1, but"),
            (model.chat([user(9)], GenerationOptions(maxTokens: 0)), "max-tokens is 0; it must be at least 1."),
            (model.chat([user(9)], GenerationOptions(temperature: .nan)), "temperature is nan; it must be 0"),
            (model.chat([user(9)], GenerationOptions(temperature: 0.001)), "or at least 0.01."),
            (model.chat([user(9)], GenerationOptions(topP: 0)), "top-p is 0.0; it must be above 0 and at most 1."),
            (model.chat([user(9)], GenerationOptions(topK: -1)), "top-k is -1"),
            (model.chat([user(9)], GenerationOptions(minP: 2)), "min-p is 2.0; it must be from 0 to 1."),
            (model.chat([user(9)], GenerationOptions(repetitionPenalty: 0)), "repetition-penalty is 0.0"),
            (model.chat([user(9)], GenerationOptions(stop: [""])), "none of them empty"),
        ] {
            let found = await sentence { _ = try await answer.text }
            #expect(found.contains(why), "\(found)")
        }
        #expect(try await model.chat([user(9)]).text.isEmpty == false)  // none of them left it busy
    }

    @Test func twoAnswersAtOnce() async throws {
        let model = try await model()
        var first: Answer.Iterator? = model.chat([user(9)], GenerationOptions(ignoresEnd: true)).makeAsyncIterator()
        _ = try await first!.next()
        do {
            _ = try await model.chat([user(8)]).text
            Issue.record("it was not busy")
        } catch let error as MobileMoEError {
            #expect(error.kind == .busy && error.sentence.hasPrefix("Another answer is being written"))
        }
        first = nil  // a loop that was left
        #expect(try await !model.chat([user(8)]).text.isEmpty)
    }

    @Test func aCancelledAnswer() async throws {
        let model = try await model()
        let wanted = try await self.model().chat([user(9)]).text
        let answer = model.chat([user(9)], GenerationOptions(maxTokens: 100, ignoresEnd: true))
        let (pieces, sent) = AsyncStream.makeStream(of: String.self)
        let task = Task {
            for try await piece in answer { sent.yield(piece) }
        }
        for await _ in pieces { break }
        task.cancel()
        await #expect(throws: CancellationError.self) { try await task.value }
        #expect(answer.usage?.finishReason == .cancelled)
        #expect(try await model.chat([user(9)]).text == wanted)
    }

    /// A prompt that takes the kernel seconds stops within it, and leaves the session as it was.
    @Test func cancellationReachesTheKernel() async throws {
        var tiny = try TinyCheckpoint()
        tiny.config["max_position_embeddings"] = 100_000
        let folder = try tiny.write()
        let options = CPUOptions(precision: .exact, threads: 1, memoryLimit: 1 << 40)
        let session = try CPUEngine(folder: folder.url, options: options).session()
        _ = try await session.feed([7])
        let task = Task { try await session.feed(Array(repeating: 9, count: 50_000)) }
        try await Task.sleep(for: .milliseconds(100))
        let second = await sentence { _ = try await session.feed([8]) }
        #expect(second == "Another call on this session is running.")
        task.cancel()
        await #expect(throws: CancellationError.self) { try await task.value }
        #expect(session.position == 1)
        let logits = try await session.feed([8])
        try session.rewind(to: 1)
        #expect(try await session.feed([8]) == logits)
    }

    @Test func sessions() async throws {
        let tokens = (0..<60).map { $0 * 7 % 96 }
        let session = try engine.session()
        let all = try await session.feed(tokens, allLogits: true)
        #expect(all.count == 60 * 96)
        try session.rewind(to: 0)
        var one: [Float] = []
        for token in tokens { one += try await session.feed([token]) }
        #expect(one == all)
        try session.rewind(to: 20)
        _ = try await session.feed([4, 4])
        try session.rewind(to: 20)
        #expect(try await session.feed(Array(tokens[20...])) == Array(all.suffix(96)))
        #expect(session.position == 60)
        for (work, why) in [
            ({ _ = try await session.feed([]) }, "There is no token to feed."),
            ({ _ = try await session.feed([1, 96]) }, "There is a token 96, but the model knows 0 to 95"),
            ({ _ = try await session.feed(Array(repeating: 1, count: 69)) }, "129 tokens do not fit into a context of 128."),
            ({ try session.rewind(to: 61) }, "Cannot rewind to token 61: 60 have been fed."),
            ({ try session.rewind(to: -1) }, "Cannot rewind to token -1"),
            ({ _ = try self.engine.session(context: 129) }, "this model takes 1 to 128."),
        ] as [(() async throws -> Void, String)] {
            let found = await sentence(work)
            #expect(found.contains(why), "\(found)")
        }
    }

    @Test func expertsThatAreReadWhenTheyAreNeeded() async throws {
        let wanted = try await engine.session().feed([1, 5, 9, 70], allLogits: true)
        let options = CPUOptions(precision: .exact, threads: 2, expertMemory: 30_000)
        let reading = try CPUEngine(folder: folder.url, options: options)
        #expect(try await reading.session().feed([1, 5, 9, 70], allLogits: true) == wanted)
        #expect(reading.expertReads!.bytesRead > 0 && reading.summary.contains("and memory for"))
        let few = await sentence {
            _ = try CPUEngine(folder: self.folder.url, options: CPUOptions(expertMemory: 7))
        }
        #expect(few.contains("7 bytes of memory for experts are too few"), "\(few)")
    }

    @Test func aFileThatShrinks() async throws {
        let folder = try TinyCheckpoint().write()
        let session = try CPUEngine(folder: folder.url).session()
        _ = try await session.feed([1, 2])
        let file = try FileHandle(forWritingTo: folder.url.appendingPathComponent("model.safetensors"))
        try file.truncate(atOffset: 1000)
        let found = await sentence { _ = try await session.feed([3]) }
        #expect(found.contains("model.safetensors became shorter while it was in use: 1000 of"), "\(found)")
        #expect(session.position == 2)
    }

    @Test func optionsOfTheEngine() async throws {
        for (options, why) in [
            (CPUOptions(threads: 0), "0 threads: the CPU engine takes 1 to 16."),
            (CPUOptions(context: 129), "A context of 129 tokens: this model takes 1 to 128."),
            (CPUOptions(expertMemory: -1), "expertMemory is -1; it must be a number of bytes."),
            (CPUOptions(cpuPath: "sparc"), "sparc"),
            (CPUOptions(memoryLimit: 50_000), "needs about"),
        ] {
            let found = await sentence { _ = try CPUEngine(folder: self.folder.url, options: options) }
            #expect(found.contains(why), "\(found)")
        }
    }

    @Test func theMemoryEstimate() async throws {
        let estimate = try CPUEngine.memoryEstimate(
            folder: folder.url, options: CPUOptions(precision: .exact, threads: 1, memoryLimit: 60_000))
        let bytes = try TinyCheckpoint(seed: 5).tensors.values.reduce(0) { $0 + $1.bytes.count }
        #expect(estimate.weights == bytes)
        #expect(estimate.cache == 2 * 2 * 2 * 24 * 4 * 128)  // keys and values, layers, heads, features
        #expect(estimate.available == 60_000 && !estimate.fits)
        let refusal = await sentence {
            _ = try CPUEngine(folder: self.folder.url, options: CPUOptions(memoryLimit: 60_000))
        }
        #expect(refusal.contains("of memory (weights "), "\(refusal)")
        #expect(refusal.contains("and 60.0 kB can be had. Choose "), "\(refusal)")
        #expect(try CPUEngine.memoryEstimate(folder: folder.url).fits)
    }
}
