/// What the paper (arXiv 2605.27358) measured of MobileMoE-S on the iPhone 16 Pro's CPU: INT4 weights,
/// 8-bit activations, 2 threads, real prompts. By tokens of the prompt.
enum PaperFigures {
    static let device = "iPhone 16 Pro, CPU (paper)"
    /// Seconds to the first token.
    static let firstToken: [Int: Double] = [1024: 2.14, 4096: 13.86]
    /// Decoded tokens a second.
    static let decodeRate: [Int: Double] = [256: 204.6, 1024: 148.4, 4096: 54.2, 8192: 32.2]
}
