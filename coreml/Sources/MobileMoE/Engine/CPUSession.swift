import Dispatch
import Foundation
import MobileMoEKernel
import Synchronization

/// A session of the CPU kernel.
public final class CPUSession: ModelSession {
    /// How many tokens are computed together at most.
    static let block = 512

    /// Tokens of prompt and answer together.
    public let context: Int
    let configuration: ModelConfiguration
    let session: KernelSession
    private let vocabularySize: Int
    private let weights: KernelWeights
    private let folder: String
    /// The kernel computes on this queue, so that no thread of Swift's own pool waits for it.
    private let queue = DispatchQueue(label: "MobileMoE session", qos: .userInitiated)
    private let call = Mutex(Call.none)

    /// The call in progress.
    private enum Call {
        case none
        /// `inKernel`: whether the kernel would notice a cancellation now.
        case running(isCancelled: Bool, inKernel: Bool)
    }

    init(
        _ session: KernelSession, weights: KernelWeights, configuration: ModelConfiguration,
        context: Int, folder: String
    ) {
        self.configuration = configuration
        self.session = session
        self.weights = weights
        vocabularySize = configuration.vocabularySize
        self.context = context
        self.folder = folder
    }

    public var position: Int { Int(mobilemoe_session_position(session.handle)) }

    public func rewind(to position: Int) throws {
        guard (0...self.position).contains(position) else {
            throw MobileMoEError(
                .input, "Cannot rewind to token \(position): \(self.position) have been fed.")
        }
        try kernel { mobilemoe_session_rewind(session.handle, Int32(position), $0) }
    }

    public func feed(_ tokens: [Int]) async throws -> [Float] {
        try await feed(tokens, allLogits: false)
    }

    /// With `allLogits` the scores after each of the tokens [tokens x vocabulary], else after the last.
    ///
    /// Throws MobileMoEError for no token, for one that the model does not know, for more than the
    /// context has room for, for a file that became shorter, and for scores that are not numbers.
    public func feed(_ tokens: [Int], allLogits: Bool) async throws -> [Float] {
        try Task.checkCancellation()
        try begin()
        defer { call.withLock { $0 = .none } }
        return try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                queue.async { continuation.resume(with: Result { try self.compute(tokens, allLogits) }) }
            }
        } onCancel: {
            cancel()
        }
    }

    private func begin() throws {
        try call.withLock {
            guard case .none = $0 else {
                throw MobileMoEError(.busy, "Another call on this session is running.")
            }
            $0 = .running(isCancelled: false, inKernel: false)
        }
    }

    private func cancel() {
        call.withLock {
            guard case .running(_, let inKernel) = $0 else { return }
            $0 = .running(isCancelled: true, inKernel: inKernel)
            if inKernel { mobilemoe_session_cancel(session.handle) }
        }
    }

    private var isCancelled: Bool {
        call.withLock { if case .running(true, _) = $0 { true } else { false } }
    }

    private func compute(_ tokens: [Int], _ allLogits: Bool) throws -> [Float] {
        defer { leaveKernel() }
        try checkTokens(
            tokens, vocabularySize: vocabularySize, position: position, context: context)
        for map in weights.maps.values { try map.check() }
        let ids = tokens.map(Int32.init)
        let count = (allLogits ? tokens.count : 1) * vocabularySize
        let which = allLogits ? MOBILEMOE_LOGITS_ALL : MOBILEMOE_LOGITS_LAST
        let logits = try [Float](unsafeUninitializedCapacity: count) { buffer, filled in
            try enterKernel()
            try feed(ids, Int32(which.rawValue), buffer.baseAddress!)
            filled = count
        }
        guard logits.allFinite else {
            throw MobileMoEError(
                .checkpoint,
                "\(folder): the model's logits are not finite (NaN or infinite), though every "
                    + "weight is finite: its numbers outgrow the type it computes in. Its training "
                    + "diverged, or the checkpoint is damaged.")
        }
        return logits
    }

    private func enterKernel() throws {
        try call.withLock {
            if case .running(true, _) = $0 { throw CancellationError() }
            $0 = .running(isCancelled: false, inKernel: true)
        }
    }

    /// A cancellation from now on is none of the kernel's. The caller takes this lock before it looks at
    /// the scores: so they are seen to be written before.
    private func leaveKernel() {
        call.withLock {
            guard case .running(let isCancelled, _) = $0 else { return }
            $0 = .running(isCancelled: isCancelled, inKernel: false)
        }
    }

    private func feed(
        _ ids: [Int32], _ which: Int32, _ logits: UnsafeMutablePointer<Float>
    ) throws {
        while true {
            do {
                try kernel {
                    mobilemoe_session_feed(
                        session.handle, ids, Int32(ids.count), which, logits, $0)
                }
                return
            } catch is CancellationError where !isCancelled {
                // Meant for the call before, which had ended when the kernel was told.
            }
        }
    }
}

extension [Float] {
    fileprivate var allFinite: Bool {
        // The exponents of infinity and NaN have all bits set.
        withUnsafeBytes { bytes in
            bytes.bindMemory(to: UInt32.self).allSatisfy { $0 & 0x7F80_0000 != 0x7F80_0000 }
        }
    }
}
