import Foundation

/// The same numbers each time (SplitMix64).
struct Seeded: RandomNumberGenerator {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    mutating func floats(_ count: Int, _ size: Float = 1) -> [Float] {
        (0..<count).map { _ in Float.random(in: -size...size, using: &self) }
    }

    mutating func codes(_ count: Int) -> Data { Data((0..<count).map { _ in UInt8.random(in: 0...255, using: &self) }) }

    /// Scales about 2^-7 to 2^-4, and some that are 0 or subnormal.
    mutating func scales(_ count: Int) -> Data {
        bytes((0..<count).map { _ in
            switch Int.random(in: 0..<20, using: &self) {
            case 0: UInt16(0)
            case 1: UInt16.random(in: 1..<0x400, using: &self)
            default: UInt16.random(in: 0x2000..<0x2C00, using: &self)
            }
        })
    }
}

func bytes<Value>(_ values: [Value]) -> Data { values.withUnsafeBytes { Data($0) } }

/// A layer of experts of any shape; experts 1, 2 and 34, where there are so many, tie for every token,
/// before all others: 34 is of the same thread of a simdgroup as 2.
struct RandomExperts {
    let hidden, width, shared, experts, perToken: Int
    var normalize = true

    var parameters: [String: Any] {
        [
            "version": 1, "layer": 0, "hidden_size": hidden, "expert_width": width, "shared_width": shared,
            "experts": experts, "experts_per_token": perToken, "group_size": 32, "norm_eps": 1e-5,
            "normalize": normalize, "normalize_eps": 1e-20, "weight_scale": 2.5,
        ]
    }

    func weights(_ random: inout Seeded) -> [Data] {
        var router = random.floats(experts * hidden), bias = random.floats(experts, 0.1)
        for tied in [1, 2, 34] where tied < experts {
            router.replaceSubrange(tied * hidden..<(tied + 1) * hidden, with: router[..<hidden])
            bias[tied] = 3
        }
        func int4(_ values: Int) -> [Data] { [random.codes(values / 2), random.scales(values / 32)] }
        return [bytes(random.floats(hidden, 2)), bytes(router), bytes(bias)]
            + int4(experts * hidden * 2 * width) + int4(experts * width * hidden)
            + int4(shared * hidden) + int4(shared * hidden) + int4(hidden * shared)
    }
}
