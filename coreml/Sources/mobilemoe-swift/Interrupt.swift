import Dispatch
import Foundation
import MobileMoE
import Synchronization

/// Ctrl-C: stops an answer where a command says so, else the program.
enum Interrupt {
    private static let stop = Mutex<(@Sendable () -> Void)?>(nil)

    /// It is heard as long as the result lives.
    static func install() -> any DispatchSourceSignal {
        signal(SIGINT, SIG_IGN)  // the source hears it all the same
        let heard = DispatchSource.makeSignalSource(signal: SIGINT, queue: .global())
        heard.setEventHandler {
            // A second one, while the first is pending, ends the program.
            let stop = stop.withLock { stop in
                defer { stop = nil }
                return stop
            }
            if let stop {
                stop()
            } else {
                note("mobilemoe-swift: interrupted.")
                exit(130)
            }
        }
        heard.resume()
        return heard
    }

    /// While `work` runs, the first Ctrl-C cancels it: it then throws CancellationError.
    static func cancelling(_ work: @escaping @Sendable () async throws -> Void) async throws {
        let task = Task(operation: work)
        stop.withLock { $0 = { task.cancel() } }
        defer { stop.withLock { $0 = nil } }
        try await task.value
    }
}
