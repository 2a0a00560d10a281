import Dispatch
import Foundation
import MobileMoE

/// The machine that figures were measured on.
enum Machine {
    /// The CPU's name and the vector instructions that it has.
    static func cpu() -> String {
        #if canImport(Darwin)
            var size = 0
            sysctlbyname("machdep.cpu.brand_string", nil, &size, nil, 0)
            var name = [CChar](repeating: 0, count: max(1, size))
            sysctlbyname("machdep.cpu.brand_string", &name, &size, nil, 0)
            return String(cString: name)
        #else
            let text = systemText("/proc/cpuinfo") ?? ""
            var fields: [String: String] = [:]
            for line in text.split(separator: "\n") {
                let parts = line.split(separator: ":", maxSplits: 1)
                guard parts.count == 2 else { continue }
                fields[parts[0].trimmingCharacters(in: .whitespaces)] =
                    parts[1].trimmingCharacters(in: .whitespaces)
            }
            let known: Set = [
                "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "asimd",
                "asimddp", "i8mm", "bf16", "sve",
            ]
            let flags = (fields["flags"] ?? fields["Features"] ?? "").split(separator: " ")
                .filter { known.contains(String($0)) }
            return "\(fields["model name"] ?? "CPU") (\(flags.joined(separator: " ")))"
        #endif
    }
}

/// Measures how many bytes a second threads read from memory.
final class Bandwidth {
    private static let bytes = 256_000_000  // well beyond any cache
    private let threads: Int
    private let memory: UnsafeMutableRawPointer

    init(threads: Int) {
        self.threads = threads
        memory = .allocate(byteCount: Self.bytes, alignment: 64)
        memset(memory, 1, Self.bytes)  // pages are touched for the first time
    }

    deinit { memory.deallocate() }

    /// Bytes a second, the best of three readings.
    func measure() -> Double {
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
