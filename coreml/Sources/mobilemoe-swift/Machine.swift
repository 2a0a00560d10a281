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
