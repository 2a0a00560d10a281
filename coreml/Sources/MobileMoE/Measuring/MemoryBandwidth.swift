import Dispatch
import Foundation

/// Measures how many bytes a second threads read from memory.
public final class MemoryBandwidth: @unchecked Sendable {  // its memory is only read
    private static let bytes = 256_000_000  // well beyond any cache
    private let threads: Int
    private let memory: UnsafeMutableRawPointer

    public init(threads: Int) {
        self.threads = threads
        memory = .allocate(byteCount: Self.bytes, alignment: 64)
        memset(memory, 1, Self.bytes)  // pages are touched for the first time
    }

    deinit { memory.deallocate() }

    /// Bytes a second, the best of three readings.
    public func measure() -> Double {
        let address = UInt(bitPattern: memory)
        let half = Self.bytes / threads / 2
        var best = 0.0
        for _ in 0..<3 {
            let start = ContinuousClock.now
            DispatchQueue.concurrentPerform(iterations: threads) { thread in
                // Comparing two halves that are alike reads both, as fast as the C library can.
                let part = UnsafeRawPointer(bitPattern: address)! + thread * 2 * half
                precondition(memcmp(part, part + half, half) == 0)
            }
            let seconds = (ContinuousClock.now - start).seconds
            best = max(best, Double(threads * 2 * half) / seconds)
        }
        return best
    }
}
