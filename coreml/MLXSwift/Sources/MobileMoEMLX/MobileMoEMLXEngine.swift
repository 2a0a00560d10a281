import Dispatch
import Foundation
import MLX
import MLXLMCommon
import MobileMoE

/// The model as an engine of the package MobileMoE, whose chats, sampling and measuring then work on it:
///
///     let model = try await MobileMoEMLXEngine.model(folder: folder)
///     for try await piece in model.chat(messages) { ... }
public final class MobileMoEMLXEngine: Engine {
    public let vocabularySize: Int
    public let endOfAnswer: Set<Int>
    public let summary: String
    private let context: Int
    private let model: Shared

    /// MLX's arrays are used by one call at a time: all sessions of an engine take turns on its queue.
    private struct Shared: @unchecked Sendable {
        let model: MobileMoEMLXModel
        let queue = DispatchQueue(label: "MobileMoE on MLX", qos: .userInitiated)
    }

    /// Loads what `MobileMoEMLXModel.load` loads, and blocks meanwhile. `context`: the most tokens of a
    /// session; nil for as many as the model takes.
    public convenience init(folder: URL, context: Int? = nil, computeType: DType? = nil) throws {
        try self.init(
            MobileMoEMLXModel.load(folder: folder, computeType: computeType), context: context,
            endOfAnswer: MobileMoETokenizer(folder: folder).endOfAnswer, name: folder.lastPathComponent)
    }

    /// `model` must not be used by anything else from here on.
    public init(_ model: MobileMoEMLXModel, context: Int? = nil, endOfAnswer: Set<Int>, name: String) throws {
        let most = model.configuration.context
        guard (1...most).contains(context ?? most) else {
            throw MobileMoEMLXError("A context of \(context ?? 0) tokens: this model takes 1 to \(most).")
        }
        vocabularySize = model.vocabularySize
        self.endOfAnswer = endOfAnswer
        self.context = context ?? most
        self.model = Shared(model: model)
        summary = "\(name), \(model.configuration.layers) layers x \(model.configuration.hiddenSize), by MLX"
    }

    /// A chat over the checkpoint in `folder`, with its own tokenizer.
    public static func model(folder: URL) async throws -> MobileMoEModel {
        let engine = try await Task.detached { try MobileMoEMLXEngine(folder: folder) }.value
        return try await MobileMoEModel(
            engine: engine,
            tokenizer: CheckpointTokenizer(
                folder: folder, vocabularySize: engine.vocabularySize, endOfAnswer: Array(engine.endOfAnswer)))
    }

    public func makeSession() async throws -> any ModelSession {
        try MobileMoEMLXSession(model.model, model.queue, context: context)
    }
}

/// A conversation on MLX: a key/value cache that grows.
final class MobileMoEMLXSession: ModelSession, @unchecked Sendable {
    /// How many tokens of a prompt are computed together; between two lots a cancellation is noticed.
    private static let lot = 512

    let context: Int
    private let model: MobileMoEMLXModel
    private let queue: DispatchQueue
    private let lock = NSLock()  // guards `isBusy` and `isCancelled`
    private var isBusy = false
    private var isCancelled = false
    private var cache: [KVCache]  // on the queue only
    private var count = 0  // on the queue only

    init(_ model: MobileMoEMLXModel, _ queue: DispatchQueue, context: Int) throws {
        self.model = model
        self.queue = queue
        self.context = context
        cache = try model.newCache(parameters: nil)
    }

    var position: Int {
        get async { await withCheckedContinuation { next in queue.async { next.resume(returning: self.count) } } }
    }

    func feed(_ tokens: [Int]) async throws -> [Float] {
        try Task.checkCancellation()
        try lock.withLock {
            guard !isBusy else { throw MobileMoEError(.busy, "Another call on this session is running.") }
            (isBusy, isCancelled) = (true, false)
        }
        defer { lock.withLock { isBusy = false } }
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { next in
                queue.async { next.resume(with: Result { try self.compute(tokens) }) }
            }
        } onCancel: {
            lock.withLock { isCancelled = true }
        }
    }

    func rewind(to position: Int) async throws {
        try await withCheckedThrowingContinuation { (next: CheckedContinuation<Void, any Error>) in
            queue.async { next.resume(with: Result { try self.forget(from: position) }) }
        }
    }

    private func compute(_ tokens: [Int]) throws -> [Float] {
        try checkTokens(
            tokens, vocabularySize: model.vocabularySize, position: count, context: context)
        let start = count
        var scores: MLXArray?
        for begin in stride(from: 0, to: tokens.count, by: Self.lot) {
            guard !lock.withLock({ isCancelled }) else {
                try forget(from: start)
                throw CancellationError()
            }
            let part = tokens[begin..<min(begin + Self.lot, tokens.count)].map(Int32.init)
            let logits = model(MLXArray(part).reshaped(1, part.count), cache: cache)
            let last = logits[0, part.count - 1].asType(.float32)
            eval(last)
            scores = last
            count += part.count
        }
        let found = scores!.asArray(Float.self)
        guard found.allSatisfy(\.isFinite) else {
            try forget(from: start)
            throw MobileMoEError(
                .checkpoint, "The model's scores are not finite: the checkpoint is damaged, or its training diverged.")
        }
        return found
    }

    private func forget(from position: Int) throws {
        guard (0...count).contains(position) else {
            throw MobileMoEError(.input, "Cannot rewind to token \(position): \(count) have been fed.")
        }
        for layer in cache { layer.trim(layer.offset - position) }
        count = position
    }
}
