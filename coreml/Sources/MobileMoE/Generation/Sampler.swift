import Foundation

/// Chooses tokens as `options` say.
package struct Sampler {
    /// The last tokens, whose scores the repetition penalty divides (mlx-lm's window).
    private static let penalised = 20

    private let options: GenerationOptions
    private var random: SplitMix64

    package init(_ options: GenerationOptions) {
        self.options = options
        random = SplitMix64(state: options.seed ?? .random(in: 0 ... .max))
    }

    /// The next token for the tokens so far and the logits after them.
    package mutating func choose(_ history: [Int], _ given: [Float]) -> Int {
        var logits = given
        penalise(history, &logits)
        if options.temperature == 0 { return likeliest(logits) }
        return logits.withUnsafeMutableBufferPointer {
            let total = weigh($0)
            return pick($0, total)
        }
    }

    /// How probable each token is to be chosen, for a temperature above 0.
    package func probabilities(_ history: [Int], _ given: [Float]) -> [Double] {
        var logits = given
        penalise(history, &logits)
        let total = logits.withUnsafeMutableBufferPointer { weigh($0) }
        return logits.map { Double($0) / total }
    }

    private func penalise(_ history: [Int], _ logits: inout [Float]) {
        guard options.repetitionPenalty != 1 else { return }
        let penalty = Float(options.repetitionPenalty)
        // Once, however often the token is there.
        for token in Set(history.suffix(Self.penalised)) {
            let score = logits[token]
            logits[token] = score < 0 ? score * penalty : score / penalty
        }
    }

    /// The first of the largest.
    private func likeliest(_ logits: [Float]) -> Int {
        logits.withUnsafeBufferPointer { logits in
            var best = 0
            for index in 1..<max(1, logits.count) where logits[index] > logits[best] { best = index }
            return best
        }
    }

    /// Makes of each logit the weight that its token is chosen with; -> their sum.
    private func weigh(_ logits: UnsafeMutableBufferPointer<Float>) -> Double {
        let largest = logits.max() ?? 0
        for index in logits.indices { logits[index] -= largest }  // the likeliest token's is 0
        if options.topP < 1 { drop(logits, below: topPThreshold(logits)) }
        if options.minP > 0 { drop(logits, below: Float(log(options.minP))) }
        if options.topK > 0, options.topK < logits.count {
            drop(logits, below: kthLargest(logits, options.topK))
        }
        let scale = Float(1 / options.temperature)
        var total = 0.0
        for index in logits.indices {
            logits[index] = exp(logits[index] * scale)
            total += Double(logits[index])
        }
        return total
    }

    private mutating func pick(_ weights: UnsafeMutableBufferPointer<Float>, _ total: Double) -> Int {
        var left = random.uniform() * total
        var last = 0
        for index in weights.indices where weights[index] > 0 {
            left -= Double(weights[index])
            last = index
            if left < 0 { break }
        }
        return last
    }

    /// Those below are never chosen.
    private func drop(_ logits: UnsafeMutableBufferPointer<Float>, below threshold: Float) {
        for index in logits.indices where logits[index] < threshold { logits[index] = -.infinity }
    }

    /// The smallest logit that is kept: those above it have together less than top-p.
    ///
    /// Few tokens have nearly all of the probability, and only those are sorted.
    private func topPThreshold(_ logits: UnsafeMutableBufferPointer<Float>) -> Float {
        var mass = 0.0
        for logit in logits { mass += Double(exp(logit)) }
        let enough = options.topP * mass
        var reach: Float = 1
        while true {
            let near = logits.filter { $0 > -reach }
            if near.count == logits.count || near.reduce(0, { $0 + Double(exp($1)) }) >= enough {
                return threshold(near.sorted(by: >), enough)
            }
            reach *= 2
        }
    }

    private func threshold(_ descending: [Float], _ enough: Double) -> Float {
        var above = 0.0
        for logit in descending.dropLast() {
            above += Double(exp(logit))
            if above >= enough { return logit }
        }
        return descending[descending.count - 1]
    }

    private func kthLargest(_ logits: UnsafeMutableBufferPointer<Float>, _ k: Int) -> Float {
        // The k largest so far, the smallest of them first.
        var heap: [Float] = []
        heap.reserveCapacity(k)
        for logit in logits {
            if heap.count < k {
                heap.append(logit)
                var child = heap.count - 1
                while child > 0, heap[child] < heap[(child - 1) / 2] {
                    heap.swapAt(child, (child - 1) / 2)
                    child = (child - 1) / 2
                }
            } else if logit > heap[0] {
                heap[0] = logit
                var parent = 0
                while true {
                    var child = 2 * parent + 1
                    guard child < k else { break }
                    if child + 1 < k, heap[child + 1] < heap[child] { child += 1 }
                    guard heap[child] < heap[parent] else { break }
                    heap.swapAt(child, parent)
                    parent = child
                }
            }
        }
        return heap[0]
    }
}

/// Steele, Lea and Flood's generator: small, and the same on every system.
struct SplitMix64: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var bits = state
        bits = (bits ^ (bits >> 30)) &* 0xBF58_476D_1CE4_E5B9
        bits = (bits ^ (bits >> 27)) &* 0x94D0_49BB_1331_11EB
        return bits ^ (bits >> 31)
    }

    /// From 0 up to, but not including, 1.
    mutating func uniform() -> Double {
        Double(next() >> 11) * 0x1p-53
    }
}
