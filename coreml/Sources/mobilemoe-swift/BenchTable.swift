import Foundation
import MobileMoE

/// The figures of `bench` as text.
struct BenchTable {
    let results: BenchResults
    let before: BenchResults?  // an earlier run, to which ratios are shown

    private var readsExperts: Bool {
        results.engines.contains { $0.contexts.values.contains { !$0.experts.isEmpty } }
    }

    var text: String {
        var rows = [
            [
                "engine", "prompt", "first token, s", "prefill, tokens/s", "decode, tokens/s",
                "of bandwidth", "peak memory", "weights touched",
            ] + (readsExperts ? ["experts found", "read a token", "from storage"] : [])
        ]
        for engine in results.engines {
            for (_, measured) in engine.contexts.sorted(by: { $0.key < $1.key }) {
                rows.append(row(engine, measured) + (readsExperts ? experts(measured) : []))
            }
            let empty = Array(repeating: "-", count: rows[0].count - 2)
            rows += engine.leftOut.map { [engine.name, "\($0)"] + empty }
        }
        let rate = fixed(median(results.bandwidth) / 1e9, 1)
        let rounds = results.rounds == 1 ? "one round" : "medians of \(results.rounds) rounds in turns"
        var lines = [
            "\(results.cpu), \(results.threads) threads, \(rate) GB/s read from memory; \(rounds).",
            "Decoding a token reads \(bytesText(results.tokenBytes)) of weights. Of bandwidth: how much "
                + "of what memory gives that takes (more than all where caches hold the weights).",
            "", columns(rows), "",
        ]
        lines += results.engines.map {
            "\($0.name): \($0.description). From the start of its process to the first token of a short "
                + "prompt: \(fixed($0.startSeconds, 2)) s."
        }
        lines += results.engines.compactMap(repeated)
        if results.engines.contains(where: { !$0.leftOut.isEmpty }) {
            lines.append("A row of -: would have taken longer than --most-seconds.")
        }
        if readsExperts {
            lines.append(
                "Experts are read when they are needed. Found: how many were in memory. From storage: "
                    + "how much of what was read the system did not have in its page cache.")
        }
        if before != nil { lines.append("x: times the earlier figure.") }
        return lines.joined(separator: "\n") + "\n"
    }

    private func row(
        _ engine: BenchResults.EngineResults, _ measured: BenchResults.Measured
    ) -> [String] {
        let old = before?.find(engine.name, measured.prompt)
        func rate(_ value: Double, _ oldValue: Double?) -> String {
            let text = fixed(value, value >= 100 ? 0 : 1)
            return oldValue.map { "\(text) x\(fixed(value / $0, 2))" } ?? text
        }
        return [
            engine.name, "\(measured.prompt)", String(format: "%.3g", measured.firstToken),
            rate(measured.prefill, old?.prefill), rate(measured.decode, old?.decode),
            "\(fixed(100 * results.bandwidthShare(measured), 0)) %", bytesText(measured.peakBytes),
            measured.touchedBytes.map(bytesText) ?? "-",
        ]
    }

    /// While a token was decoded: experts found, bytes read, and those from storage.
    private func experts(_ measured: BenchResults.Measured) -> [String] {
        let used = measured.experts.reduce(0) { $0 + $1.hits + $1.misses }
        guard used > 0 else { return ["-", "-", "-"] }
        let tokens = measured.decoded * measured.experts.count
        let stored = measured.experts.compactMap(\.storageBytes)
        let hits = measured.experts.reduce(0) { $0 + $1.hits }
        return [
            "\(fixed(100 * Double(hits) / Double(used), 0)) %",
            bytesText(measured.experts.reduce(0) { $0 + $1.bytesRead } / tokens),
            stored.count < measured.experts.count ? "-" : bytesText(stored.reduce(0, +) / tokens),
        ]
    }

    /// What the repeated token shows: experts that it leaves alone.
    private func repeated(_ engine: BenchResults.EngineResults) -> String? {
        guard let repeated = engine.repeated, let real = engine.contexts[repeated.prompt] else {
            return nil
        }
        var memory = ""
        if let few = repeated.touchedBytes, let many = real.touchedBytes, few > 0, many > 0 {
            guard Double(few) < 0.99 * Double(many) else { return nil }
            memory = ", and touches \(bytesText(few)) of the weights in place of \(bytesText(many))"
        }
        return "\(engine.name): one token repeated \(repeated.prompt) times decodes at "
            + "\(fixed(repeated.decode / real.decode, 2)) x the speed of real text\(memory)."
    }

    /// Rows of equally many cells; the first column to the left, the others to the right.
    private func columns(_ rows: [[String]]) -> String {
        let widths = rows[0].indices.map { column in rows.map { $0[column].count }.max()! }
        return rows.map { row in
            row.enumerated().map { column, cell in
                let space = String(repeating: " ", count: widths[column] - cell.count)
                return column == 0 ? cell + space : space + cell
            }.joined(separator: "  ")
        }.joined(separator: "\n")
    }
}
