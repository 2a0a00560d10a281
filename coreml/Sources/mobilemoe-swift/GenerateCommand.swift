import Foundation
import MobileMoE

/// `mobilemoe-swift generate MODEL`: continues a prompt from the command line, a file or stdin.
enum GenerateCommand: Command {
    static let name = "generate"
    static let summary = "continue a prompt"
    static let examples = [
        "mobilemoe-swift generate runs/quickstart/training/qat/model --prompt \"import os\"",
        "mobilemoe-swift generate runs/quickstart/training/qat/model --prompt \"def \" --temperature "
            + "0.7 --top-k 40 --seed 1",
        "mobilemoe-swift generate runs/quickstart/training/qat/model --token-ids 1,2,3 --max-tokens 8 "
            + "--precision exact --ignore-eos --print-ids",
    ]
    static let options =
        [
            Option("--prompt", .value("TEXT"), "text to continue, as it is (default: standard input)"),
            Option("--prompt-file", .value("FILE"), "read the prompt from a UTF-8 file; - is stdin"),
            Option(
                "--token-ids", .value("N,N"),
                "token ids to continue, in the place of text; with --print-ids no tokenizer is needed"),
            Option("--ignore-eos", .flag, "the tokens that end an answer are taken for any others"),
            Option("--print-ids", .flag, "print the new ids, comma-separated, as the last line"),
        ] + SharedOptions.generation + SharedOptions.engine + [SharedOptions.json]

    private struct Record: Encodable {
        let prompt: String?
        let promptIds: [Int]?
        let answer: String
        let answerIds: [Int]?
        let promptTokens: Int
        let promptTokensPerSecond: Double?
        let generatedTokens: Int
        let generatedTokensPerSecond: Double?
        let peakMemoryBytes: Int
        let finishReason: Usage.FinishReason
    }

    static func run(_ arguments: Arguments) async throws -> Int32 {
        let json = try JSONTarget(arguments)
        let options = try arguments.generationOptions()
        let ids = try tokenIDs(arguments)
        let text = ids == nil ? try prompt(arguments) : nil
        let printsIDs = arguments.has("--print-ids")
        let model = try await openModel(arguments, withTokenizer: ids == nil || !printsIDs)
        let tokens = try ids ?? model.tokenizer!.encode(prompt: text!)
        let room = model.context - tokens.count
        if room > 0, room < options.maxTokens {
            note(
                "The prompt has \(tokens.count) of the context's \(model.context) tokens: at most \(room) "
                    + "are generated, not \(options.maxTokens).")
        }
        let answer = model.generate(tokens: tokens, options)
        var made = ""
        var new: [Int] = []
        for try await step in answer.steps {
            new.append(step.token)
            made += step.text
            if !json.takesOverOutput, !step.text.isEmpty { try put(step.text) }
        }
        if !json.takesOverOutput {
            if model.tokenizer != nil { try endLine(made) }
            if printsIDs { try put(new.map(String.init).joined(separator: ",") + "\n") }
        }
        guard let usage = answer.usage else { return 0 }
        try json.write(
            Record(
                prompt: text, promptIds: ids, answer: made, answerIds: printsIDs ? new : nil,
                promptTokens: usage.promptTokens, promptTokensPerSecond: usage.promptTokensPerSecond,
                generatedTokens: usage.generatedTokens,
                generatedTokensPerSecond: usage.tokensPerSecond, peakMemoryBytes: usage.peakMemory,
                finishReason: usage.finishReason))
        note("\(usage)")
        return 0
    }

    private static func tokenIDs(_ arguments: Arguments) throws -> [Int]? {
        guard let text = arguments.text("--token-ids") else { return nil }
        guard !arguments.has("--prompt"), !arguments.has("--prompt-file") else {
            throw UserMistake("--token-ids is in the place of a prompt: leave out the other.")
        }
        return try text.split(separator: ",", omittingEmptySubsequences: false).map {
            guard let id = Int($0.trimmingCharacters(in: .whitespaces)) else {
                throw UserMistake("--token-ids: '\(text.prefix(40))' is not like 1,2,3.")
            }
            return id
        }
    }

    private static func prompt(_ arguments: Arguments) throws -> String {
        guard !(arguments.has("--prompt") && arguments.has("--prompt-file")) else {
            throw UserMistake("--prompt and --prompt-file exclude each other.")
        }
        var text: String
        if let given = arguments.text("--prompt") {
            text = given
        } else if let file = arguments.text("--prompt-file") ?? (isatty(STDIN_FILENO) == 1 ? nil : "-") {
            text = try utf8Text(readAll(file, "prompt file"), "The prompt in \(file)")
            // The newline that ends the last line.
            if text.hasSuffix("\r\n") || text.hasSuffix("\n") { text.removeLast() }
        } else {
            throw UserMistake(
                "There is no prompt: give --prompt TEXT or --prompt-file FILE, or pipe it.")
        }
        guard !text.isEmpty else {
            throw UserMistake("The prompt is empty: there is nothing to continue.")
        }
        return text
    }
}
