import Foundation
import MobileMoE

/// One of the program's commands.
protocol Command {
    static var name: String { get }
    static var summary: String { get }
    static var options: [Option] { get }
    static var examples: [String] { get }
    /// -> the program's status.
    static func run(_ arguments: Arguments) async throws -> Int32
}

/// `mobilemoe-swift`: the commands of `mobilemoe` that run a model, without Python.
@main
struct Program {
    static var commands: [Command.Type] { [GenerateCommand.self, ChatCommand.self, BenchCommand.self] }

    static func main() async {
        let words = CommandLine.arguments.dropFirst()
        if words.first == BenchWorker.name { exit(await BenchWorker.run(Array(words.dropFirst()))) }
        let interrupts = Interrupt.install()
        defer { interrupts.cancel() }
        do {
            exit(try await run(words))
        } catch let error as UserMistake {
            fail(error.sentence)
        } catch let error as MobileMoEError {
            fail(error.sentence)
        } catch is CancellationError {
            note("mobilemoe-swift: interrupted.")
            exit(130)
        } catch {
            fail(error.localizedDescription)
        }
    }

    private static func run(_ words: ArraySlice<String>) async throws -> Int32 {
        guard let name = words.first, !["-h", "--help"].contains(name) else {
            try put(overview)
            return 0
        }
        guard let command = commands.first(where: { $0.name == name }) else {
            throw UserMistake(
                "There is no command '\(name)'\(didYouMean(name, commands.map { $0.name })). "
                    + "`mobilemoe-swift --help` lists them.")
        }
        if words.contains("-h") || words.contains("--help") {
            try put(helpText(command) + "\n")
            return 0
        }
        return try await command.run(Arguments(words.dropFirst(), options: command.options))
    }

    private static func fail(_ sentence: String) -> Never {
        note("mobilemoe-swift: \(sentence)")
        exit(2)
    }

    private static var overview: String {
        var lines = [
            "MobileMoE in Swift: runs published INT4 checkpoints on the CPU.", "",
            "usage: mobilemoe-swift COMMAND MODEL ...   (mobilemoe-swift COMMAND --help: its options)", "",
        ]
        for command in commands {
            let name = command.name.padding(toLength: 11, withPad: " ", startingAt: 0)
            lines += ["  \(name) \(command.summary)", "              \(command.examples[0])"]
        }
        return lines.joined(separator: "\n") + "\n"
    }
}
