import Foundation

#if canImport(FoundationNetworking)
    import FoundationNetworking
#endif

/// The part of HTTP that downloads need; tests answer from memory.
protocol Transport: Sendable {
    /// Sends a GET and returns as soon as the head of the answer is there. Redirects are followed.
    func get(_ url: URL, headers: [String: String]) async throws -> Response
}

struct Response: Sendable {
    let status: Int
    /// The body, in pieces as they arrive.
    let body: AsyncThrowingStream<Data, any Error>

    func wholeBody(atMost limit: Int) async throws -> Data {
        var all = Data()
        for try await piece in body {
            all += piece
            guard all.count <= limit else { throw DownloadError.unexpectedAnswer }
        }
        return all
    }
}

/// HTTP by URLSession.
struct URLSessionTransport: Transport {
    func get(_ url: URL, headers: [String: String]) async throws -> Response {
        var request = URLRequest(url: url, timeoutInterval: 60)
        for (name, value) in headers { request.setValue(value, forHTTPHeaderField: name) }
        let receiver = Receiver()
        let configuration = URLSessionConfiguration.ephemeral  // no second copy of a model in a cache
        let session = URLSession(configuration: configuration, delegate: receiver, delegateQueue: nil)
        let task = session.dataTask(with: request)
        session.finishTasksAndInvalidate()
        return try await withTaskCancellationHandler {
            try await receiver.response(of: task)
        } onCancel: {
            task.cancel()
        }
    }
}

/// Turns the callbacks of one task into a response and a stream.
private final class Receiver: NSObject, URLSessionDataDelegate, @unchecked Sendable {
    private let lock = NSLock()  // guards `head`
    private var head: CheckedContinuation<Response, any Error>?
    private let body: AsyncThrowingStream<Data, any Error>
    private let pieces: AsyncThrowingStream<Data, any Error>.Continuation

    override init() {
        (body, pieces) = AsyncThrowingStream.makeStream()
    }

    func response(of task: URLSessionDataTask) async throws -> Response {
        pieces.onTermination = { _ in task.cancel() }
        return try await withCheckedThrowingContinuation { continuation in
            lock.withLock { head = continuation }
            task.resume()
        }
    }

    private func answer(_ result: Result<Response, any Error>) {
        let waiting = lock.withLock {
            defer { head = nil }
            return head
        }
        waiting?.resume(with: result)
    }

    func urlSession(
        _: URLSession, dataTask: URLSessionDataTask, didReceive response: URLResponse,
        completionHandler: @escaping @Sendable (URLSession.ResponseDisposition) -> Void
    ) {
        let status = (response as? HTTPURLResponse)?.statusCode ?? 0
        answer(.success(Response(status: status, body: body)))
        completionHandler(.allow)
    }

    func urlSession(_: URLSession, dataTask: URLSessionDataTask, didReceive data: Data) {
        pieces.yield(data)
    }

    func urlSession(_: URLSession, task: URLSessionTask, didCompleteWithError error: (any Error)?) {
        if let error {
            answer(.failure(error))
            pieces.finish(throwing: error)
        } else {
            pieces.finish()
        }
    }
}
