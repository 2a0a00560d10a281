import Foundation
import MobileMoE

/// An engine of the package MobileMoE, with its tokenizer, as one of the app's.
struct PackageEngine: DemoEngine {
    let model: MobileMoEModel

    var description: String { model.engine.summary }
    var context: Int { model.context }
    var bytesReadPerToken: Int? { (model.engine as? CPUEngine)?.configuration.bytesReadPerToken }

    func chat(_ messages: [ChatMessage], options: AnswerOptions) -> AsyncThrowingStream<AnswerEvent, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    let answer = model.chat(
                        messages,
                        GenerationOptions(
                            maxTokens: options.maxTokens, temperature: options.temperature, topP: options.topP))
                    for try await step in answer.steps {
                        if let experts = step.experts { continuation.yield(.experts(experts)) }
                        if !step.text.isEmpty { continuation.yield(.text(step.text)) }
                    }
                    if let usage = answer.usage { continuation.yield(.end(AnswerStatistics(usage))) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    func session() async throws -> any ModelSession { try await model.engine.makeSession() }

    func tokens(of text: String) throws -> [Int] {
        guard let tokenizer = model.tokenizer else {
            throw MobileMoEError(.tokenizer, "The model has no tokenizer, so no text can be measured.")
        }
        return try tokenizer.encode(text)
    }
}

extension AnswerStatistics {
    init(_ usage: Usage) {
        self.init(
            promptTokens: usage.promptTokens + usage.reusedTokens, answerTokens: usage.generatedTokens,
            firstTokenSeconds: usage.secondsToFirstToken ?? 0, tokensPerSecond: usage.tokensPerSecond,
            peakMemoryBytes: usage.peakMemory)
    }
}
