#if canImport(CoreML)
    import Dispatch
    import MobileMoE
    import Synchronization

    /// What a package computes in one call of Core ML.
    protocol PackageRunner: AnyObject {
        /// Whether a call of many tokens covers a whole block of positions, padding included.
        var fillsBlocks: Bool { get }
        /// The scores after the last of `tokens`, 1 to a block of them, the first at `position`.
        func run(_ tokens: [Int], at position: Int) throws -> [Float]
    }

    /// One conversation with a package: any number of tokens at a time, cut into the calls it takes.
    final class CoreMLSession: ModelSession, @unchecked Sendable {  // a call at a time, on `queue`
        let context: Int
        private let block: Int
        private let vocabularySize: Int
        private let runner: any PackageRunner
        private let queue = DispatchQueue(label: "MobileMoE Core ML session", qos: .userInitiated)
        private let state = Mutex(State())

        private struct State {
            var tokens: [Int] = []  // those whose keys and values are there
            var isRunning = false
            var isCancelled = false
        }

        init(_ runner: any PackageRunner, _ manifest: PackageManifest) {
            self.runner = runner
            context = manifest.context
            block = manifest.block
            vocabularySize = manifest.vocabularySize
        }

        var position: Int { state.withLock { $0.tokens.count } }

        func rewind(to position: Int) throws {
            try state.withLock {
                try Self.checkFree($0)
                guard (0...$0.tokens.count).contains(position) else {
                    throw MobileMoEError(
                        .input, "Cannot rewind to token \(position): \($0.tokens.count) have been fed.")
                }
                $0.tokens.removeLast($0.tokens.count - position)
            }
        }

        func feed(_ tokens: [Int]) async throws -> [Float] {
            try Task.checkCancellation()
            let known = try state.withLock {
                try Self.checkFree($0)
                try checkTokens(
                    tokens, vocabularySize: vocabularySize, position: $0.tokens.count, context: context)
                $0.isRunning = true
                $0.isCancelled = false
                return $0.tokens
            }
            defer { state.withLock { $0.isRunning = false } }
            let logits = try await withTaskCancellationHandler {
                try await onQueue(queue) { try self.compute(known + tokens, from: known.count) }
            } onCancel: {
                state.withLock { $0.isCancelled = true }
            }
            state.withLock { $0.tokens = known + tokens }
            return logits
        }

        private static func checkFree(_ state: State) throws {
            guard !state.isRunning else {
                throw MobileMoEError(.busy, "Another call on this session is running.")
            }
        }

        private func compute(_ tokens: [Int], from known: Int) throws -> [Float] {
            var logits: [Float] = []
            var next = known
            while next < tokens.count {
                if state.withLock({ $0.isCancelled }) { throw CancellationError() }
                let end = min(next + block, tokens.count)
                var start = next
                // A block may not reach beyond the context, padding included: it starts earlier then,
                // with tokens that are there already, and gives the same rows again.
                if runner.fillsBlocks, end - next > 1 { start = min(start, context - block) }
                logits = try runner.run(Array(tokens[start..<end]), at: start)
                next = end
            }
            return logits
        }
    }
#endif
