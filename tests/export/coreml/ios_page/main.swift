// Runs the code of docs/ios.md: conversations of one generator from standard input, JSON to output.

import CoreML
import Foundation

struct Scenario: Decodable { let name: String, conversations: [[Int]], block: Int, context: Int, vocabulary: Int, all: Bool }
struct Outcome: Encodable { let answers: [[Int]], calls: [[Call]], heard: [Int], asked: String, isBusyTold: Bool }

final class Heard: @unchecked Sendable { var tokens: [Int] = [] }

let scenario = try JSONDecoder().decode(Scenario.self, from: FileHandle.standardInput.readDataToEndOfFile())
(MLModel.block, MLModel.context) = (scenario.block, scenario.context)
(MLModel.vocabulary, MLModel.allLogits) = (scenario.vocabulary, scenario.all)
let generator = try await Generator(name: scenario.name)
let heard = Heard()
var answers: [[Int]] = [], calls: [[Call]] = []
for tokens in scenario.conversations {
    MLModel.calls = []
    answers.append(try await generator.answer(tokens) { heard.tokens.append($0) })
    calls.append(MLModel.calls)
}
let first = scenario.conversations[0]
let asked = try await ask(first.map(String.init).joined(separator: " "), name: scenario.name)
MLModel.isHeld = true
async let held = generator.answer(first)
while !MLModel.isPredicting { try await Task.sleep(nanoseconds: 1_000_000) }
var isBusyTold = false
do { _ = try await generator.answer(first) } catch is Generator.Busy { isBusyTold = true }
MLModel.isHeld = false
_ = try await held
let drawn = (0..<100).map { _ in sample([0, 9, 1, 8.5], k: 2, temperature: 0.7) }
precondition(Set(drawn) == [1, 3] || Set(drawn) == [1])
let outcome = Outcome(answers: answers, calls: calls, heard: heard.tokens, asked: asked, isBusyTold: isBusyTold)
print(String(decoding: try JSONEncoder().encode(outcome), as: UTF8.self))
