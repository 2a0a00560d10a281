import MobileMoEKernel

/// A session that can tell which routed experts the last token chose.
public protocol ReportsExperts: ModelSession {
    /// A list for each layer, by falling score; nil before a token was computed, and after `rewind`.
    func chosenExperts() -> [[Int]]?
}

extension CPUSession: ReportsExperts {
    public func chosenExperts() -> [[Int]]? {
        let (layers, slots) = (configuration.layerCount, configuration.expertsPerToken)
        var chosen = [Int32](repeating: 0, count: layers * slots)
        guard mobilemoe_session_experts(session.handle, 1, &chosen, nil) == MOBILEMOE_OK else { return nil }
        return (0..<layers).map { chosen[$0 * slots..<($0 + 1) * slots].map(Int.init) }
    }
}
