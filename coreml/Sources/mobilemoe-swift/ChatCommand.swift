import Foundation
import MobileMoE

/// `mobilemoe-swift chat MODEL`: talks with an instruction-tuned checkpoint, on a terminal or by a
/// pipe.
enum ChatCommand: Command {
    static let name = "chat"
    static let summary = "talk with an instruction-tuned checkpoint"
    static let examples = [
        "mobilemoe-swift chat runs/quickstart/training/qat/model",
        "mobilemoe-swift chat runs/quickstart/training/qat/model --system \"Be brief.\" "
            + "--temperature 0.7 --seed 1",
    ]
    static let options =
        [
            Option("--system", .value("TEXT"), "a system message before the first turn"),
            Option("--load", .value("FILE"), "go on with a conversation that /save wrote"),
        ] + SharedOptions.generation + SharedOptions.engine

    /// 1 when no message that came by a pipe was answered.
    static func run(_ arguments: Arguments) async throws -> Int32 {
        let options = try arguments.generationOptions()
        let loaded = try arguments.text("--load").map(ConversationFile.load) ?? []
        let system = arguments.text("--system")
        if loaded.first?.role == .system, system != nil {
            throw UserMistake("\(arguments.text("--load")!) has a system message: leave out --system.")
        }
        let model = try await openModel(arguments)
        // A base model has no chat format: said before the first message is typed.
        _ = try model.tokenCount([ChatMessage(role: .user, content: "?")])
        var chat = ChatLoop(model: model, options: options, system: system)
        if !loaded.isEmpty { try chat.load(loaded) }
        let isInteractive = isatty(STDIN_FILENO) == 1
        if isInteractive { note(ChatLine.help) }
        let fine = try await chat.run(isInteractive: isInteractive)
        return fine || isInteractive ? 0 : 1
    }
}

/// What a line of a chat is.
enum ChatLine {
    case command(String, argument: String)
    case slip(String)  // what to tell of it
    case message(String)

    static let help =
        "/reset forgets the conversation, /context says how much room is left, /save FILE and /load "
        + "FILE keep and fetch a conversation, /send TEXT sends any text, /exit (or end of input) "
        + "leaves, /help says this, Ctrl-C stops an answer. All other lines are sent, also those that "
        + "begin with /."

    private static let withArgument = ["/save", "/load", "/send"]
    private static let known = ["/reset", "/context", "/exit", "/help"] + withArgument

    /// A line is a command only in just this form: `/exit 1 means what?` is a message.
    init(_ line: String) {
        let text = line.trimmingCharacters(in: .whitespacesAndNewlines)
        let words = text.split(maxSplits: 1, whereSeparator: \.isWhitespace).map(String.init)
        let name = words.first ?? ""
        let argument = words.count > 1 ? words[1].trimmingCharacters(in: .whitespacesAndNewlines) : ""
        if name == "/send" {
            self = .message(argument)
        } else if Self.known.contains(name), argument.isEmpty || Self.withArgument.contains(name) {
            self = .command(name, argument: argument)
        } else if words.count == 1, name.hasPrefix("/"),
            let meant = closest(name, Self.known, cutoff: 0.8)
        {
            self = .slip("There is no command \(name) (did you mean '\(meant)'?). `/send \(name)` sends it.")
        } else {
            self = .message(text)
        }
    }
}

/// The conversation of a terminal.
struct ChatLoop {
    let model: MobileMoEModel
    let options: GenerationOptions
    var messages: [ChatMessage] = []
    private var system: String?
    private var input = InputLines()

    init(model: MobileMoEModel, options: GenerationOptions, system: String?) {
        (self.model, self.options, self.system) = (model, options, system)
        reset()
    }

    /// Answers lines until /exit or the end of input; -> whether any message was answered, or none
    /// was sent.
    mutating func run(isInteractive: Bool) async throws -> Bool {
        var sent = 0
        var answered = 0
        while true {
            if isInteractive { try put("> ") }
            guard let bytes = try input.next() else { break }
            do {
                switch ChatLine(try asLineMistake { try utf8Text(bytes, "The message") }) {
                case .command("/exit", _): return answered > 0 || sent == 0
                case .command(let name, let argument): note(try obey(name, argument))
                case .slip(let sentence): note(sentence)
                case .message(""): break
                case .message(let text):
                    sent += 1
                    try await answer(text)
                    answered += 1
                    if isInteractive { note(try contextText()) }
                }
            } catch let error as MobileMoEError where error.kind != .checkpoint && error.kind != .kernel {
                note(error.sentence)
            } catch let error as LineMistake {
                note(error.sentence)
            }
        }
        return answered > 0 || sent == 0
    }

    mutating func load(_ loaded: [ChatMessage]) throws {
        let first = loaded.first?.role == .system ? [] : messages.filter { $0.role == .system }
        let new = first + loaded
        let used = try model.tokenCount(new)
        guard used < model.context else {
            throw LineMistake(
                "That conversation has \(used) tokens, but the context is \(model.context).")
        }
        messages = new
        if new.first?.role == .system { system = new[0].content }
    }

    private mutating func reset() {
        messages = system.map { [ChatMessage(role: .system, content: $0)] } ?? []
    }

    private mutating func obey(_ name: String, _ argument: String) throws -> String {
        switch name {
        case "/help": return ChatLine.help
        case "/context": return try contextText()
        case "/reset":
            reset()
            return "The conversation is forgotten."
        default: break
        }
        guard !argument.isEmpty else {
            throw LineMistake("\(name) needs the name of a file: \(name) FILE.")
        }
        if name == "/save" {
            let path = try asLineMistake { try ConversationFile.save(argument, messages) }
            return "Saved \(messages.count) messages to \(path)."
        }
        try load(asLineMistake { try ConversationFile.load(argument) })
        return "Went back to \(messages.count) messages. \(try contextText())"
    }

    private func contextText() throws -> String {
        let used = try model.tokenCount(messages)
        return "Context: \(used) of \(model.context) tokens used, \(max(0, model.context - used)) left."
    }

    private mutating func answer(_ text: String) async throws {
        let question = ChatMessage(role: .user, content: text)
        let asked = messages + [question]
        let answer = model.chat(asked, options)
        let made = Collected()
        do {
            try await Interrupt.cancelling {
                for try await piece in answer {
                    await made.add(piece)
                    try put(piece)
                }
            }
        } catch is CancellationError {
            // What was written of it is kept.
        }
        let reply = await made.text
        if answer.usage.map({ $0.generatedTokens > 0 }) ?? false {
            messages = asked + [ChatMessage(role: .assistant, content: reply)]
        }
        try endLine(reply)
        guard let usage = answer.usage, usage.finishReason != .cancelled else {
            note("(stopped)")
            return
        }
        if usage.finishReason == .context {
            note(
                "The answer is cut: the conversation fills the context of \(model.context) tokens. "
                    + "/reset begins anew.")
        } else if usage.finishReason == .maxTokens {
            note("The answer is cut at max-tokens (\(usage.generatedTokens)).")
        }
        note("\(usage)")
    }
}

/// Text that a task collects.
private actor Collected {
    private(set) var text = ""
    func add(_ piece: String) { text += piece }
}

/// A mistake in a line: the chat goes on.
private struct LineMistake: Error {
    let sentence: String
    init(_ sentence: String) { self.sentence = sentence }
}

private func asLineMistake<Result>(_ work: () throws -> Result) throws -> Result {
    do {
        return try work()
    } catch let error as UserMistake {
        throw LineMistake(error.sentence)
    }
}

/// Lines of standard input, as bytes: one that is not UTF-8 is refused by itself.
struct InputLines {
    private var held: [UInt8] = []
    private var isAtEnd = false

    mutating func next() throws -> [UInt8]? {
        while true {
            if let end = held.firstIndex(of: UInt8(ascii: "\n")) {
                let line = Array(held[..<end])
                held.removeSubrange(...end)
                return line
            }
            if isAtEnd {
                defer { held = [] }
                return held.isEmpty ? nil : held
            }
            var block = [UInt8](repeating: 0, count: 65536)
            let got = read(STDIN_FILENO, &block, block.count)
            if got < 0, errno == EINTR { continue }
            guard got >= 0 else { throw UserMistake("standard input: \(systemReason()).") }
            isAtEnd = got == 0
            held += block[..<got]
        }
    }
}
