import Foundation
import Testing

@testable import MobileMoE

@Suite struct SamplerTests {
    /// As often as it is probable: chi-squared of 6 tokens stays below its 1-in-10,000 limit.
    @Test func draws() {
        let logits: [Float] = [1, 0, -1, 2, 0.5, -3]
        let options = GenerationOptions(temperature: 0.7, seed: 4)
        var sampler = Sampler(options)
        let wanted = logits.map { exp(Double($0) / 0.7) }
        let total = wanted.reduce(0, +)
        var counts = [Int](repeating: 0, count: 6)
        let draws = 20_000
        for _ in 0..<draws { counts[sampler.choose([], logits)] += 1 }
        var chi = 0.0
        for (count, weight) in zip(counts, wanted) {
            let mean = Double(draws) * weight / total
            chi += (Double(count) - mean) * (Double(count) - mean) / mean
        }
        #expect(chi < 25.7)  // of 5 degrees of freedom
        for (found, weight) in zip(sampler.probabilities([], logits), wanted) {
            #expect(abs(found - weight / total) < 1e-6)
        }
    }

    @Test func aSeedRepeatsAndOthersDiffer() {
        let logits = (0..<50).map { Float($0 % 7) }
        func drawn(_ seed: UInt64?) -> [Int] {
            var sampler = Sampler(GenerationOptions(temperature: 1, seed: seed))
            return (0..<40).map { _ in sampler.choose([], logits) }
        }
        #expect(drawn(3) == drawn(3))
        #expect(drawn(3) != drawn(4))
        #expect(drawn(nil) != drawn(nil))
    }

    @Test func filters() {
        let logits: [Float] = [0, -1, -2, -3, -4]
        func kept(_ options: GenerationOptions, _ logits: [Float] = logits) -> [Int] {
            let found = Sampler(options).probabilities([], logits)
            return found.indices.filter { found[$0] > 0 }
        }
        #expect(kept(GenerationOptions(temperature: 1, topK: 2)) == [0, 1])
        #expect(kept(GenerationOptions(temperature: 1, topK: 9)) == [0, 1, 2, 3, 4])
        #expect(kept(GenerationOptions(temperature: 1, topK: 2), [1, 0, 0, -1]) == [0, 1, 2])  // a tie
        // Probabilities 0.636, 0.234, 0.086, ...
        #expect(kept(GenerationOptions(temperature: 1, topP: 0.6)) == [0])
        #expect(kept(GenerationOptions(temperature: 1, topP: 0.7)) == [0, 1])
        #expect(kept(GenerationOptions(temperature: 5, topP: 0.7)) == [0, 1])  // before the temperature
        #expect(kept(GenerationOptions(temperature: 1, minP: 0.1)) == [0, 1, 2])  // e^-2 = 0.135
    }

    @Test func greedyAndPenalty() {
        var sampler = Sampler(GenerationOptions(repetitionPenalty: 2))
        #expect(sampler.choose([], [1, 3, 3]) == 1)
        #expect(sampler.choose([1, 1], [1, 3, 2]) == 2)  // 3 / 2, once
        #expect(sampler.choose([0], [-1, -1.5, -3]) == 1)  // -1 x 2
        #expect(sampler.choose([1] + Array(repeating: 0, count: 20), [1, 3, 2]) == 1)  // 21 ago
    }

    @Test func stopStrings() {
        func passed(_ stop: [String], _ pieces: [String]) -> (String, Bool) {
            var strings = StopStrings(stop)
            var text = ""
            for piece in pieces where !strings.isFound { text += strings.add(piece) }
            return (text + strings.finish(), strings.isFound)
        }
        #expect(passed(["END"], ["abE", "N", "Dx"]) == ("ab", true))
        #expect(passed(["END"], ["abE", "N", "x"]) == ("abENx", false))
        #expect(passed(["ab", "b"], ["a", "b"]) == ("", true))  // of two at once, the one that began first
        #expect(passed(["bcd", "c"], ["abcd"]) == ("ab", true))  // complete first
        #expect(passed(["aab"], ["a", "a", "a", "b"]) == ("a", true))
        #expect(passed(["e"], ["e\u{301}"]) == ("", true))  // by bytes, whatever follows
        #expect(passed(["é"], ["e\u{301}"]) == ("e\u{301}", false))
        #expect(passed(["日本"], ["今日", "本"]) == ("今", true))
        var strings = StopStrings(["END"])
        #expect(strings.add("abEN") == "ab")  // only what may become one is held back
        #expect(strings.add("ERG") == "ENERG")
    }
}
