import Observation

/// Which experts each layer uses while an answer is written.
@MainActor
@Observable
final class ExpertsViewModel {
    /// What a use counts after each further token: a use is half forgotten after 8 tokens.
    static let memory = 0.917

    /// How much each expert was used lately: [layer][expert], 0 to 1; 1 is an expert of every token.
    private(set) var use: [[Double]] = []
    /// Tokens seen since the start or `reset`.
    private(set) var tokens = 0
    /// How often each expert was chosen since then: [layer][expert].
    private(set) var counts: [[Int]] = []

    /// The experts of one token: a list for each layer.
    func record(_ chosen: [[Int]]) {
        grow(to: chosen)
        tokens += 1
        for layer in chosen.indices {
            for expert in use[layer].indices { use[layer][expert] *= Self.memory }
            for expert in chosen[layer] {
                use[layer][expert] += 1 - Self.memory
                counts[layer][expert] += 1
            }
        }
    }

    func reset() {
        use = []
        counts = []
        tokens = 0
    }

    /// Experts that a layer has used at all, of the highest number seen.
    func usedCount(layer: Int) -> Int { counts[layer].count { $0 > 0 } }

    /// What VoiceOver says in place of the picture.
    var summary: String {
        guard tokens > 0, let widest = counts.indices.max(by: { usedCount(layer: $0) < usedCount(layer: $1) })
        else { return "No token has been written yet." }
        let used = counts.indices.map { usedCount(layer: $0) }
        let mean = Double(used.reduce(0, +)) / Double(used.count)
        return "\(tokens) tokens. A layer used \(Int(mean.rounded())) experts on average, "
            + "layer \(widest + 1) the most: \(used[widest])."
    }

    private func grow(to chosen: [[Int]]) {
        let width = max(use.first?.count ?? 0, (chosen.joined().max() ?? -1) + 1)
        for layer in 0..<max(use.count, chosen.count) {
            if layer >= use.count {
                use.append([])
                counts.append([])
            }
            use[layer] += Array(repeating: 0, count: width - use[layer].count)
            counts[layer] += Array(repeating: 0, count: width - counts[layer].count)
        }
    }
}
