import Foundation
import Testing

@testable import MobileMoE

// What tests/swift/ writes: cases from Python, whose paths come by variables of environment.

private func variable(_ name: String) -> String? { ProcessInfo.processInfo.environment[name] }

private func lines(_ path: String) throws -> [JSON.Object] {
    let text = try String(contentsOfFile: path, encoding: .utf8)
    return try text.split(separator: "\n").map { try JSON.parse(Array($0.utf8)).object! }
}

@Suite(.enabled(if: variable("MOBILEMOE_CASES") != nil)) struct AgainstMLXTests {
    @Test func logits() async throws {
        let home = URL(fileURLWithPath: variable("MOBILEMOE_CASES")!)
        var count = 0
        for name in try FileManager.default.contentsOfDirectory(atPath: home.path) {
            let case_ = home.appendingPathComponent(name)
            guard fileKind(case_.appendingPathComponent("case.json").path) == .file else { continue }
            let content = try readJSON(case_.appendingPathComponent("case.json").path).object!
            let tokens = content["tokens"]!.array!.map { $0.integer! }
            let wanted = try Data(contentsOf: case_.appendingPathComponent("logits.bin"))
                .withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
            let folder = URL(fileURLWithPath: content["folder"]!.string!)
            for precision in [CPUOptions.Precision.exact, .int16] {
                let engine = try CPUEngine(folder: folder, options: CPUOptions(precision: precision))
                let found = try await engine.session().feed(tokens, allLogits: true)
                #expect(found.count == wanted.count)
                // Rounded activations may choose another expert where two score nearly alike.
                let limit = precision == .exact ? 1e-4 : 0.5
                let error = relativeError(found, wanted)
                #expect(error < limit, "\(name), \(precision): \(error)")
            }
            count += 1
        }
        #expect(count > 5)
    }

    private func relativeError(_ found: [Float], _ wanted: [Float]) -> Double {
        var difference = 0.0
        var size = 0.0
        for (one, two) in zip(found, wanted) {
            difference += Double((one - two) * (one - two))
            size += Double(two * two)
        }
        return (difference / size).squareRoot()
    }
}

@Suite(.enabled(if: variable("MOBILEMOE_CONFIGS") != nil)) struct ConfigurationTests {
    @Test func judgedAsPythonDoes() throws {
        for line in try lines(variable("MOBILEMOE_CONFIGS")!) {
            guard case .bool(let accepted)? = line["accepted"], let config = line["config"]?.object
            else { throw JSONError(what: "is no case") }
            do {
                _ = try ModelConfiguration(config)
                if !accepted { Issue.record("only Python refuses \(JSON.object(config).all)") }
            } catch let error as MobileMoEError {
                #expect(error.sentence.hasPrefix("config.json") && error.sentence.hasSuffix("."))
                if accepted { Issue.record("\(error.sentence) Python accepts \(JSON.object(config).all)") }
            }
        }
    }
}

@Suite(.enabled(if: variable("MOBILEMOE_PROBABILITIES") != nil)) struct ProbabilityTests {
    @Test func asPythonDraws() throws {
        for line in try lines(variable("MOBILEMOE_PROBABILITIES")!) {
            func number(_ name: String) -> Double { line[name]!.double! }
            let options = GenerationOptions(
                temperature: number("temperature"), topP: number("top_p"),
                topK: line["top_k"]!.integer!, minP: number("min_p"),
                repetitionPenalty: number("repetition_penalty"))
            let found = Sampler(options).probabilities(
                line["history"]!.array!.map { $0.integer! },
                line["logits"]!.array!.map { Float($0.double!) })
            let wanted = line["expected"]!.array!.map { $0.double! }
            let error = zip(found, wanted).map { abs($0 - $1) }.max()!
            #expect(found.count == wanted.count && error < 1e-5, "\(error) with \(options)")
            #expect(zip(found, wanted).allSatisfy { ($0 > 0) == ($1 > 0) })
        }
    }
}

extension JSON {
    /// Uncut.
    fileprivate var all: String {
        switch self {
        case .object(let object):
            "{" + object.entries.map { "\($0.key): \($0.value.all)" }.joined(separator: ", ") + "}"
        default: shown
        }
    }
}
