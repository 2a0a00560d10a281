import Foundation
import MobileMoE

@testable import DemoViewModels

/// An engine that answers from a list, as fast or slowly as a test wants.
final class FakeEngine: DemoEngine, @unchecked Sendable {
    let description = "a fake of 2 layers"
    let context: Int
    let bytesReadPerToken: Int? = 1_000_000
    /// Asked conversations.
    private(set) var asked: [[ChatMessage]] = []
    private let events: [AnswerEvent]
    private let error: (any Error)?
    private let waitsAfter: Int?

    /// `waitsAfter`: it sleeps for an hour after so many events, until it is cancelled.
    init(_ events: [AnswerEvent], error: (any Error)? = nil, waitsAfter: Int? = nil, context: Int = 1000) {
        self.events = events
        self.error = error
        self.waitsAfter = waitsAfter
        self.context = context
    }

    func chat(_ messages: [ChatMessage], options: AnswerOptions) -> AsyncThrowingStream<AnswerEvent, any Error> {
        asked.append(messages)
        return AsyncThrowingStream { continuation in
            let task = Task {
                for (index, event) in events.enumerated() {
                    if index == waitsAfter { try? await Task.sleep(for: .seconds(3600)) }
                    if Task.isCancelled { return continuation.finish(throwing: CancellationError()) }
                    continuation.yield(event)
                }
                continuation.finish(throwing: error)
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    func session() async throws -> any ModelSession { FakeSession() }

    func tokens(of text: String) throws -> [Int] { text.utf8.map(Int.init) }
}

/// Takes any tokens, and notes them.
final class FakeSession: ModelSession, @unchecked Sendable {
    let context = 1000
    private(set) var position = 0

    func feed(_ tokens: [Int]) async throws -> [Float] {
        try await Task.sleep(for: .microseconds(200))
        position += tokens.count
        return [0]
    }

    func rewind(to position: Int) async throws { self.position = position }
}

struct FakeDevice: DeviceProbe {
    let name = "Fake1,1, Test 1.0"
    let thermalState = "nominal"
    var batteryLevel: Double?
    var isCharging: Bool?
}

/// Answers from memory, and notes what it was asked.
final class FakeTransport: Transport, @unchecked Sendable {
    struct Answer {
        var status = 200
        var body = Data()
        /// The connection breaks after so many bytes.
        var breaksAfter: Int?
    }

    private let lock = NSLock()
    private var answers: [String: Answer]
    private var requests: [(path: String, headers: [String: String])] = []

    init(_ answers: [String: Answer]) { self.answers = answers }

    var asked: [(path: String, headers: [String: String])] { lock.withLock { requests } }

    func set(_ path: String, _ answer: Answer) { lock.withLock { answers[path] = answer } }

    func get(_ url: URL, headers: [String: String]) async throws -> Response {
        let path = String(url.path.dropFirst())
        let answer = lock.withLock {
            requests.append((path, headers))
            return answers[path]
        }
        guard let answer else { return Response(status: 404, body: AsyncThrowingStream { $0.finish() }) }
        var (status, body) = (answer.status, answer.body)
        if status == 200, let range = headers["Range"], let start = Int(range.dropFirst(6).dropLast()) {
            (status, body) = (206, body.dropFirst(start))
        }
        let sent = Data(answer.breaksAfter.map { body.prefix($0) } ?? body)
        return Response(
            status: status,
            body: AsyncThrowingStream { continuation in
                for start in stride(from: 0, to: sent.count, by: 700) {
                    continuation.yield(sent[start..<min(start + 700, sent.count)])
                }
                continuation.finish(throwing: answer.breaksAfter == nil ? nil : URLError(.networkConnectionLost))
            })
    }
}

/// A folder that is gone with the test.
@MainActor
func withFolder<Result>(_ body: @MainActor (URL) async throws -> Result) async throws -> Result {
    let folder = FileManager.default.temporaryDirectory.appending(path: "demo-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    return try await body(folder)
}
