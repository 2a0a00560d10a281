import Foundation

#if canImport(Darwin)
    import os
#endif

/// The most memory that this process has held at once so far, in bytes: mapped weights that were
/// touched count.
public func peakMemory() -> Int {
    #if canImport(Darwin)
        var usage = rusage()
        getrusage(RUSAGE_SELF, &usage)
        return Int(usage.ru_maxrss)
    #else
        // Not getrusage, which starts at what the parent process had.
        return (procField("/proc/self/status", "VmHWM:") ?? 0) * 1024
    #endif
}

/// Bytes that the system can give this process; nil where it does not tell.
package func availableMemory() -> Int? {
    #if canImport(Darwin)
        #if !os(macOS)
            // More, and the app is ended. Zero in the simulator, which has no such limit.
            let left = Int(os_proc_available_memory())
            if left > 0 { return left }
        #endif
        // A Mac swaps: what it has in all is the limit of what makes sense.
        return Int(ProcessInfo.processInfo.physicalMemory)
    #else
        guard let free = procField("/proc/meminfo", "MemAvailable:") else { return nil }
        return min(free * 1024, containerMemory() ?? .max)
    #endif
}

#if !canImport(Darwin)
    /// What a container's limit leaves; its page cache can be given back.
    private func containerMemory() -> Int? {
        let folder = "/sys/fs/cgroup"
        guard let most = number("\(folder)/memory.max"), let used = number("\(folder)/memory.current")
        else { return nil }
        let cached = (procField("\(folder)/memory.stat", "inactive_file") ?? 0)
            + (procField("\(folder)/memory.stat", "active_file") ?? 0)
        return max(0, most - used + cached)
    }

    private func number(_ path: String) -> Int? {
        systemText(path).flatMap {
            Int($0.trimmingCharacters(in: .whitespacesAndNewlines))
        }
    }

    /// The number behind `name` in a file of lines like "VmHWM:   1234 kB".
    private func procField(_ path: String, _ name: String) -> Int? {
        guard let text = systemText(path) else { return nil }
        for line in text.split(separator: "\n") {
            let words = line.split(whereSeparator: \.isWhitespace)
            if words.count > 1, words[0] == name { return Int(words[1]) }
        }
        return nil
    }
#endif
