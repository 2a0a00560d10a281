import Foundation
import MobileMoE

/// The process that one engine is measured in: it opens the engine and prints a line of JSON; then, for
/// each line it reads, it runs one conversation and prints what that took.
enum BenchWorker {
    static let name = "bench-worker"

    struct Asked: Codable {
        let folder: String
        let precision: String
        let threads: Int
        let expertMemory: Int?
    }

    struct Greeting: Codable {
        var description: String?
        var error: String?
    }

    /// The first `prompt` of the tokens at once, the others one by one.
    struct Request: Codable {
        let tokens: [Int]
        let prompt: Int
    }

    struct Reply: Codable {
        var error: String?
        var firstTokenSeconds = 0.0
        var decodeSeconds = 0.0
        var peakBytes = 0
        var touchedBytes: Int?
        var experts: BenchResults.ExpertsRead?
    }

    static func run(_ words: [String]) async -> Int32 {
        do {
            guard let word = words.first else { return 2 }
            let asked = try JSONDecoder().decode(Asked.self, from: Data(word.utf8))
            let engine: CPUEngine
            do {
                var options = CPUOptions(
                    precision: try parse(asked.precision, "precision"), threads: asked.threads,
                    expertMemory: asked.expertMemory)
                options.expertMemoryName = SharedOptions.expertMemory.name
                engine = try CPUEngine(
                    folder: URL(fileURLWithPath: asked.folder), options: options)
            } catch let error as MobileMoEError {
                try say(Greeting(error: error.sentence))
                return 2
            }
            try say(Greeting(description: engine.summary))
            var lines = InputLines()
            while let line = try lines.next() {
                let request = try JSONDecoder().decode(Request.self, from: Data(line))
                do {
                    try say(try await serve(request, engine))
                } catch let error as MobileMoEError {
                    try say(Reply(error: error.sentence))
                }
            }
            return 0
        } catch {
            note("\(name): \(error)")
            return 2
        }
    }

    private static func serve(_ request: Request, _ engine: CPUEngine) async throws -> Reply {
        let session = try engine.session(context: request.tokens.count)
        let clock = ContinuousClock()
        let start = clock.now
        _ = try await session.feed(Array(request.tokens[..<request.prompt]))
        let (reads, stored) = (engine.expertReads, storageBytesRead())
        let first = clock.now
        for token in request.tokens[request.prompt...] { _ = try await session.feed([token]) }
        let last = clock.now
        var reply = Reply()
        reply.firstTokenSeconds = (first - start).seconds
        reply.decodeSeconds = (last - first).seconds
        reply.peakBytes = peakMemory()
        reply.touchedBytes = touchedBytes()
        if let reads, let after = engine.expertReads {
            let storedAfter = storageBytesRead()
            reply.experts = BenchResults.ExpertsRead(
                hits: after.hits - reads.hits, misses: after.misses - reads.misses,
                bytesRead: after.bytesRead - reads.bytesRead,
                storageBytes: stored.flatMap { before in storedAfter.map { $0 - before } })
        }
        return reply
    }

    private static func say(_ answer: some Encodable) throws {
        try put(String(decoding: JSONEncoder().encode(answer), as: UTF8.self) + "\n")
    }

    /// Bytes of files that came from storage, not from the page cache; nil where the system does not
    /// tell.
    private static func storageBytesRead() -> Int? {
        let text = systemText("/proc/self/io")
        let line = text?.split(separator: "\n").first { $0.hasPrefix("read_bytes:") }
        return line.flatMap { Int($0.split(separator: " ")[1]) }
    }

    /// Bytes of weight files that this process has touched in its memory map; nil: not known.
    private static func touchedBytes() -> Int? {
        guard let text = systemText("/proc/self/smaps") else {
            return nil
        }
        var total = 0
        var counts = false
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            if let head = words.first, !head.hasSuffix(":") {  // the line that begins a mapping
                counts = line.hasSuffix(".safetensors")
            } else if counts, words.first == "Rss:", words.count > 1 {
                total += (Int(words[1]) ?? 0) * 1024
            }
        }
        return total
    }
}

/// A running worker, seen from the process that measures.
final class BenchProcess {
    let engine: String
    private(set) var description = ""
    private let process = Process()
    private let requests = Pipe()
    private let replies = Pipe()
    private var held: [UInt8] = []
    private let start = ContinuousClock.now
    private var speed = (prompt: 0, first: 0.0, decode: 0.0)  // of the longest prompt so far

    init(_ engine: String, _ asked: BenchWorker.Asked) throws {
        self.engine = engine
        process.executableURL = URL(fileURLWithPath: programPath())
        let word = String(decoding: try JSONEncoder().encode(asked), as: UTF8.self)
        process.arguments = [BenchWorker.name, word]
        process.standardInput = requests
        process.standardOutput = replies
        do {
            try process.run()
        } catch {
            throw UserMistake("The process of \(engine) cannot be started: \(error.localizedDescription)")
        }
        let greeting = try answer(BenchWorker.Greeting.self)
        if let why = greeting.error { throw UserMistake("The engine \(engine): \(why)") }
        description = greeting.description ?? ""
    }

    deinit {
        try? requests.fileHandleForWriting.close()
        process.waitUntilExit()
    }

    var secondsSinceStart: Double { (ContinuousClock.now - start).seconds }

    /// One conversation.
    func run(_ tokens: [Int], prompt: Int) throws -> BenchWorker.Reply {
        let request = try JSONEncoder().encode(BenchWorker.Request(tokens: tokens, prompt: prompt))
        try requests.fileHandleForWriting.write(contentsOf: request + Data("\n".utf8))
        let reply = try answer(BenchWorker.Reply.self)
        if let why = reply.error { throw UserMistake("The engine \(engine): \(why)") }
        if prompt >= speed.prompt { speed = (prompt, reply.firstTokenSeconds, reply.decodeSeconds) }
        return reply
    }

    /// What a prompt of this length will take at the speed seen so far.
    func predictedSeconds(_ prompt: Int) -> Double {
        speed.first * Double(prompt) / Double(speed.prompt) + speed.decode
    }

    private func answer<Answer: Decodable>(_ type: Answer.Type) throws -> Answer {
        while true {
            if let end = held.firstIndex(of: UInt8(ascii: "\n")) {
                defer { held.removeSubrange(...end) }
                return try JSONDecoder().decode(type, from: Data(held[..<end]))
            }
            let more = replies.fileHandleForReading.availableData
            guard !more.isEmpty else {
                process.waitUntilExit()
                throw UserMistake("The engine \(engine) ended, with status \(process.terminationStatus).")
            }
            held += more
        }
    }
}

private func programPath() -> String {
    #if os(Linux)
        return "/proc/self/exe"
    #else
        return Bundle.main.executablePath ?? CommandLine.arguments[0]
    #endif
}
