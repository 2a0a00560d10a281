import Foundation
import MobileMoE

/// `mobilemoe-swift bench MODEL`: speed and memory of the engine's precisions, measured in turns, each
/// in a process of its own.
enum BenchCommand: Command {
    static let name = "bench"
    static let summary = "measure speed and memory on a checkpoint"
    static let examples = [
        "mobilemoe-swift bench runs/quickstart/training/qat/model --contexts 256 --rounds 1",
        "mobilemoe-swift bench runs/quickstart/training/qat/model --engine cpu:int8 --contexts 64,256 "
            + "--rounds 1 --json runs/bench.json",
    ]
    static let options = [
        Option(
            "--engine", .value("NAME[:PRECISION]"),
            "cpu:int8, cpu:int16 or cpu:exact; may be repeated (default: all)"),
        Option("--contexts", .value("N,N"), "tokens of the prompts (default 256,1k,4k,8k)"),
        Option("--rounds", .value("N"), "default 5"),
        Option("--threads", .value("N"), "1 to 16 (default: one for each fast core)"),
        SharedOptions.expertMemory,
        Option(
            "--most-seconds", .value("S"), "leave out what would take longer, once (default 60.0)"),
        Option(
            "--text", .value("FILE"),
            "what prompts are cut from, UTF-8 (default: a text of this program, over and over)"),
        Option("--compare", .value("FILE"), "show ratios to this earlier --json FILE, of either program"),
        SharedOptions.json,
        Option("--rivals", .value("NAME,NAME"), "only `mobilemoe bench` has rivals"),
        Option("--picture", .value("FILE"), "only `mobilemoe bench` draws"),
    ]

    static let shortPrompt = 32  // tokens of the first prompt, which is timed from the process's start
    static let decoded = 32  // tokens after each prompt

    static func run(_ arguments: Arguments) async throws -> Int32 {
        let json = try JSONTarget(arguments)
        for option in ["--rivals", "--picture"] where arguments.has(option) {
            throw UserMistake("mobilemoe-swift has no \(option): `mobilemoe bench` has.")
        }
        let before = try arguments.text("--compare").map(earlier)
        let results = try measure(arguments)
        try json.write(results)
        if !json.takesOverOutput { try put(BenchTable(results: results, before: before).text) }
        return 0
    }

    private static func earlier(_ path: String) throws -> BenchResults {
        let content = Data(try readAll(path, "file"))
        guard let results = try? BenchResults.read(content) else {
            throw UserMistake("\(path) was not written by `bench --json`.")
        }
        return results
    }

    private static func measure(_ arguments: Arguments) throws -> BenchResults {
        let rounds = try arguments.whole("--rounds") ?? 5
        let most = try arguments.number("--most-seconds") ?? 60
        guard rounds >= 1 else { throw UserMistake("\(rounds) rounds: at least 1 is needed.") }
        let folder = userPath(arguments.model)
        let model = try ModelConfiguration(folder: folder)
        let lengths = try lengths(arguments.text("--contexts") ?? "256,1k,4k,8k", model)
        let options = try arguments.engineOptions(of: "cpu")
        let asked = try precisions(arguments).map { precision in
            (
                "cpu:\(precision.rawValue)",
                BenchWorker.Asked(
                    folder: folder.path, precision: precision.rawValue,
                    threads: options.threadCount, expertMemory: options.expertMemory)
            )
        }
        let tokens = try tokens(arguments, folder, model)
        var results = BenchResults(
            model: folder.path, cpu: Machine.cpu(), threads: options.threadCount, rounds: rounds,
            tokenBytes: model.bytesReadPerToken)
        var processes: [BenchProcess] = []
        for (name, asked) in asked {
            say("starting \(name)")
            let process = try BenchProcess(name, asked)
            let first = try process.run(
                window(tokens, 0, Self.shortPrompt + decoded), prompt: Self.shortPrompt)
            processes.append(process)
            results.engines.append(
                .init(
                    name: name, description: process.description,
                    startSeconds: process.secondsSinceStart - first.decodeSeconds))
        }
        let bandwidth = MemoryBandwidth(threads: options.threadCount)
        for round in 0..<rounds {
            results.bandwidth.append(bandwidth.measure())
            for length in lengths {
                let text = window(tokens, round * (length + decoded), length + decoded)
                for (index, process) in processes.enumerated() {
                    if results.engines[index].leftOut.contains(length) { continue }
                    // Not in a later round: a median needs a figure of each.
                    if round == 0, process.predictedSeconds(length) > most {
                        results.engines[index].leftOut.append(length)
                        continue
                    }
                    say("round \(round + 1) of \(rounds), \(length) tokens, \(process.engine)")
                    try add(&results.engines[index].contexts[length], process, text, length)
                }
            }
        }
        for (index, (name, asked)) in asked.enumerated() {
            guard let length = results.engines[index].contexts.keys.min() else { continue }
            say("repeated tokens, \(name)")
            let text = Array(repeating: tokens[0], count: length + decoded)
            try add(&results.engines[index].repeated, BenchProcess(name, asked), text, length)
        }
        return results
    }

    private static func add(
        _ measured: inout BenchResults.Measured?, _ process: BenchProcess, _ tokens: [Int], _ length: Int
    ) throws {
        let reply = try process.run(tokens, prompt: length)
        var figures = measured ?? {
            var first = BenchResults.Measured(prompt: length, decoded: tokens.count - length)
            first.peakBytes = reply.peakBytes
            first.touchedBytes = reply.touchedBytes
            return first
        }()
        figures.firstTokenSeconds.append(reply.firstTokenSeconds)
        figures.decodeSeconds.append(reply.decodeSeconds)
        figures.experts += reply.experts.map { [$0] } ?? []
        measured = figures
    }

    private static func precisions(_ arguments: Arguments) throws -> [CPUOptions.Precision] {
        let names = arguments.texts("--engine")
        guard !names.isEmpty else { return [.int8, .int16, .exact] }
        return try names.map { name in
            let parts = name.split(separator: ":", maxSplits: 1).map(String.init)
            guard parts.first == "cpu" else {
                throw UserMistake(
                    "There is no engine '\(name)'. mobilemoe-swift has cpu:int8, cpu:int16 and cpu:exact.")
            }
            return parts.count > 1 ? try parse(parts[1], "precision") : .int16
        }
    }

    /// In order, each once; those beyond the model's context are lowered to it.
    private static func lengths(_ text: String, _ model: ModelConfiguration) throws -> [Int] {
        let most = model.context - decoded
        let lengths = try text.split(separator: ",", omittingEmptySubsequences: false).map { part in
            let isThousand = part.hasSuffix("k")
            guard let number = Int(isThousand ? part.dropLast() : part), number < 1 << 40 else {
                throw UserMistake("--contexts: '\(text)' is not like 256,1k,4k.")
            }
            return number * (isThousand ? 1024 : 1)
        }
        guard most >= 1, lengths.allSatisfy({ $0 >= 1 }) else {
            throw UserMistake(
                "Prompts of \(text) tokens: at least 1 is needed, and \(decoded) positions of the model's "
                    + "context for the answer.")
        }
        return Set(lengths.map { min($0, most) }).sorted()
    }

    /// The text by the checkpoint's tokenizer or, without one, its bytes as token ids.
    private static func tokens(
        _ arguments: Arguments, _ folder: URL, _ model: ModelConfiguration
    ) throws -> [Int] {
        let text = try arguments.text("--text").map { try utf8Text(readAll($0, "text"), $0) } ?? benchText
        guard !text.isEmpty else { throw UserMistake("--text: the file is empty.") }
        var tokens = text.utf8.map(Int.init)
        if fileKind(folder.appendingPathComponent("tokenizer.json").path) == .file {
            tokens = try CheckpointTokenizer(folder: folder).encode(text)
        }
        return tokens.map { $0 % model.vocabularySize }
    }

    /// `count` tokens from `start` on, from the beginning again where they end.
    private static func window(_ tokens: [Int], _ start: Int, _ count: Int) -> [Int] {
        (start..<start + count).map { tokens[$0 % tokens.count] }
    }

    private static func say(_ text: String) { note("bench: \(text)") }
}
