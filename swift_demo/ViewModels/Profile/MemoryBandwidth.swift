import Dispatch
import Foundation

/// How many bytes a second several threads together read from memory: the bound of decoding.
enum MemoryBandwidth {
    /// Larger than any cache of a phone.
    static let bytes = 128 << 20

    /// The best of three passes. Holds `bytes` of memory meanwhile.
    static func measure(threads: Int) -> Double {
        let count = bytes / MemoryLayout<SIMD8<UInt64>>.stride
        let words = UnsafeMutableBufferPointer<SIMD8<UInt64>>.allocate(capacity: count)
        defer { words.deallocate() }
        words.initialize(repeating: SIMD8(repeating: 1))
        let shared = UnsafeBuffer(words: UnsafeBufferPointer(words))
        var best = 0.0
        for _ in 0..<3 {
            let clock = ContinuousClock()
            let time = clock.measure {
                DispatchQueue.concurrentPerform(iterations: threads) { thread in
                    let begin = count * thread / threads, end = count * (thread + 1) / threads
                    var (a, b, c, d) = (SIMD8<UInt64>(), SIMD8<UInt64>(), SIMD8<UInt64>(), SIMD8<UInt64>())
                    var index = begin
                    while index + 4 <= end {  // four sums, so that none waits for another
                        a &+= shared.words[index]
                        b &+= shared.words[index + 1]
                        c &+= shared.words[index + 2]
                        d &+= shared.words[index + 3]
                        index += 4
                    }
                    sink(a &+ b &+ c &+ d)
                }
            }
            best = max(best, Double(bytes) / time.seconds)
        }
        return best
    }

    private struct UnsafeBuffer: @unchecked Sendable {
        let words: UnsafeBufferPointer<SIMD8<UInt64>>
    }

    /// Keeps the sums from being optimised away.
    @inline(never)
    private static func sink(_ sum: SIMD8<UInt64>) {}
}

extension Duration {
    /// As a number.
    var seconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}
