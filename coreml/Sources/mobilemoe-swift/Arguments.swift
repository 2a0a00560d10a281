import Foundation
import MobileMoE

/// An option of a command, or its positional argument.
struct Option {
    enum Kind {
        case flag
        case value(String)  // its metavariable
        case optionalValue(String)
    }

    let name: String  // with its dashes; a positional argument has none
    let kind: Kind
    let help: String

    init(_ name: String, _ kind: Kind, _ help: String) {
        (self.name, self.kind, self.help) = (name, kind, help)
    }
}

/// What a command line asks for, by option.
struct Arguments {
    private(set) var model = ""
    private var given: [String: [String]] = [:]

    /// Throws one sentence for what is unknown, missing or too much.
    init(_ words: ArraySlice<String>, options: [Option]) throws {
        var words = words
        var positional: [String] = []
        var isOption = true
        while let word = words.popFirst() {
            guard isOption, word.hasPrefix("-"), word.count > 1 else {
                positional.append(word)
                continue
            }
            if word == "--" {
                isOption = false
                continue
            }
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let name = String(parts[0])
            guard let option = options.first(where: { $0.name == name }) else {
                throw UserMistake("there is no option \(name)\(didYouMean(name, options.map(\.name))).")
            }
            var value = parts.count > 1 ? String(parts[1]) : nil
            switch option.kind {
            case .flag:
                guard value == nil else { throw UserMistake("\(name) takes no value.") }
            case .optionalValue:
                if value == nil, let next = words.first, next == "-" || !next.hasPrefix("-") {
                    value = words.removeFirst()
                }
            case .value(let what):
                if value == nil, let next = words.first, !next.hasPrefix("--") {
                    value = words.removeFirst()
                }
                guard value != nil else { throw UserMistake("\(name) needs a value: \(name) \(what).") }
            }
            given[name, default: []].append(value ?? "")
        }
        guard positional.count <= 1 else {
            throw UserMistake("there is one argument too many: '\(positional[1])'.")
        }
        guard let model = positional.first, !model.isEmpty else {
            throw UserMistake("the folder of the model is missing.")
        }
        self.model = model
    }

    func has(_ name: String) -> Bool { given[name] != nil }
    func texts(_ name: String) -> [String] { given[name] ?? [] }
    func text(_ name: String) -> String? { given[name]?.last }

    func whole(_ name: String) throws -> Int? {
        try text(name).map {
            guard let number = Int($0) else {
                throw UserMistake("\(name): '\($0.prefix(40))' is not a whole number.")
            }
            return number
        }
    }

    func number(_ name: String) throws -> Double? {
        try text(name).map {
            guard let number = Double($0), !$0.contains(where: \.isWhitespace) else {
                throw UserMistake("\(name): '\($0.prefix(40))' is not a number.")
            }
            guard number.isFinite else { throw UserMistake("\(name): \($0) is not a finite number.") }
            return number
        }
    }

    /// Bytes, written like 500MB or 5GB.
    func byteSize(_ name: String) throws -> Int? {
        try text(name).map { text in
            let spelt = text.uppercased().trimmingCharacters(in: .whitespaces)
            let digits = spelt.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
            var unit = spelt.dropFirst(digits.count).trimmingCharacters(in: .whitespaces)
            if unit.hasSuffix("B") { unit.removeLast() }
            let units = ["": 1.0, "K": 1e3, "M": 1e6, "G": 1e9]
            guard let factor = units[unit], let number = Double(digits), digits.last != ".",
                digits.first != ".", number * factor < 1e18
            else {
                throw UserMistake(
                    "\(name): '\(text.prefix(40))' is no size; write it like 500MB or 5GB.")
            }
            return Int(number * factor)
        }
    }
}

/// A mistake of the person at the keyboard: the program ends with status 2.
struct UserMistake: Error {
    let sentence: String
    init(_ sentence: String) { self.sentence = sentence }
}

/// Options of several commands.
enum SharedOptions {
    static let generation = [
        Option("--max-tokens", .value("N"), "longest answer (default 256)"),
        Option("--temperature", .value("T"), "0 always takes the likeliest token (default 0)"),
        Option(
            "--top-p", .value("P"),
            "sample among the likeliest tokens with this probability together (default all)"),
        Option("--top-k", .value("K"), "sample among this many likeliest tokens (default all)"),
        Option(
            "--min-p", .value("P"),
            "sample among tokens at least this probable, relative to the likeliest (default all)"),
        Option("--repetition-penalty", .value("X"), "above 1: avoid the last 20 tokens (default 1)"),
        Option("--seed", .value("N"), "makes sampling repeatable"),
        Option("--stop", .value("TEXT"), "end before this text; may be repeated"),
    ]

    static let engine = [
        Option("--engine", .value("NAME"), "cpu, the only one of this program"),
        Option("--precision", .value("NAME"), "exact, int16 (default, near exact) or int8 (fastest)"),
        Option("--threads", .value("N"), "1 to 16 (default: one for each fast core)"),
        expertMemory,
        Option("--context", .value("N"), "tokens of prompt and answer (default: the model's most)"),
        Option("--cache", .value("NAME"), "keys and values as float32, float16 or int8"),
        Option("--memory-limit", .value("SIZE"), "refuse to load what needs more, like 2GB"),
        Option("--adapter", .value("FOLDER"), "not taken by this engine: `mobilemoe fuse` first"),
    ]

    static let expertMemory = Option(
        "--expert-memory", .value("SIZE"),
        "keep so much of the routed experts in memory, like 300MB, and read the others from the "
            + "file when they are needed (default: all are mapped)")

    static let json = Option(
        "--json", .optionalValue("FILE"),
        "write the figures to FILE as JSON as well; without FILE, or with -, print JSON in place of "
            + "the text")
}

extension Arguments {
    func generationOptions() throws -> GenerationOptions {
        let base = GenerationOptions()
        var seed: UInt64?
        if let text = text("--seed") {
            guard let number = UInt64(text) else {
                throw UserMistake(
                    "seed is \(text.prefix(40)); it must be a whole number from 0 to 2^64 - 1.")
            }
            seed = number
        }
        let options = GenerationOptions(
            maxTokens: try whole("--max-tokens") ?? base.maxTokens,
            temperature: try number("--temperature") ?? base.temperature,
            topP: try number("--top-p") ?? base.topP, topK: try whole("--top-k") ?? base.topK,
            minP: try number("--min-p") ?? base.minP,
            repetitionPenalty: try number("--repetition-penalty") ?? base.repetitionPenalty,
            seed: seed, stop: texts("--stop"), ignoresEnd: has("--ignore-eos"))
        try options.check()
        return options
    }

    /// `engine`: the one asked for, where `--engine` is not just its name.
    func engineOptions(of engine: String? = nil) throws -> CPUOptions {
        if let engine = engine ?? text("--engine"), engine != "cpu" {
            throw UserMistake(
                "mobilemoe-swift has the engine 'cpu' alone, not '\(engine)': `mobilemoe` has others.")
        }
        if let adapter = text("--adapter") {
            throw UserMistake(
                "The CPU engine takes no adapters: fuse them first: mobilemoe fuse \(model) \(adapter) "
                    + "OUTPUT --to int4.")
        }
        var options = CPUOptions(
            precision: try choice("--precision", "precision") ?? .int16,
            threads: try whole("--threads"), context: try whole("--context"),
            cache: try choice("--cache", "cache"),
            expertMemory: try byteSize(SharedOptions.expertMemory.name),
            memoryLimit: try byteSize("--memory-limit"))
        options.expertMemoryName = SharedOptions.expertMemory.name
        return options
    }

    private func choice<Choice: RawRepresentable & CaseIterable>(
        _ option: String, _ what: String
    ) throws -> Choice? where Choice.RawValue == String {
        try text(option).map { try parse($0, what) }
    }
}

func parse<Choice: RawRepresentable & CaseIterable>(
    _ text: String, _ what: String
) throws -> Choice where Choice.RawValue == String {
    guard let choice = Choice(rawValue: text) else {
        let known = Choice.allCases.map(\.rawValue)
        throw UserMistake(
            "There is no \(what) '\(text)'\(didYouMean(text, known)). Known: "
                + "\(known.joined(separator: ", ")).")
    }
    return choice
}

/// The text of `--help`.
func helpText(_ command: Command.Type) -> String {
    var lines = ["usage: mobilemoe-swift \(command.name) MODEL [options]", "", command.summary, ""]
    for option in command.options {
        let value =
            switch option.kind {
            case .flag: ""
            case .value(let what): " \(what)"
            case .optionalValue(let what): " [\(what)]"
            }
        lines += ["  \(option.name)\(value)", "        \(option.help)"]
    }
    return (lines + ["", "examples:"] + command.examples.map { "  \($0)" }).joined(separator: "\n")
}
