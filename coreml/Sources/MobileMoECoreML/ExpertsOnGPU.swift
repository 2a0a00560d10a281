#if canImport(Metal)
    import Foundation
    import Metal
    import MobileMoE
    import MobileMoELayers

    /// MobileMoEExperts by the kernels of Metal/experts.metal, on a command queue of its own.
    final class ExpertsOnGPU {
        private let gpu: GPU
        private var sizes: Sizes
        private let weights: [String: any MTLBuffer]
        // Mapped weights are not copied, and a buffer does not keep them.
        private let owners: [WeightBytes]

        /// As in experts.metal.
        private struct Sizes {
            var hidden, width, shared, experts, perToken, tokens, normalize: UInt32
            var normEps, weightScale: Float
        }

        private struct Tile { var expert, first, count: UInt32 }

        private static let names = [
            "norm", "router", "expert_bias", "gate_up_codes", "gate_up_scales", "down_codes",
            "down_scales", "shared_gate_codes", "shared_gate_scales", "shared_up_codes",
            "shared_up_scales", "shared_down_codes", "shared_down_scales",
        ]

        init(_ sizes: ExpertsSizes, weight: (String) throws -> WeightBytes) throws {
            gpu = try GPU.shared()
            self.sizes = Sizes(
                hidden: UInt32(sizes.hidden), width: UInt32(sizes.width), shared: UInt32(sizes.shared),
                experts: UInt32(sizes.experts), perToken: UInt32(sizes.perToken), tokens: 0,
                normalize: sizes.isNormalized ? 1 : 0, normEps: Float(sizes.normEps),
                weightScale: Float(sizes.weightScale))
            var buffers: [String: any MTLBuffer] = [:], owners: [WeightBytes] = []
            for name in Self.names {
                let bytes = try weight(name)
                buffers[name] = try gpu.buffer(bytes)
                owners.append(bytes)
            }
            weights = buffers
            self.owners = owners
        }

        /// out = residual + the experts' sum, both [count, hidden].
        func compute(
            _ residual: UnsafePointer<Float>, _ out: UnsafeMutablePointer<Float>, _ count: Int
        ) throws {
            gpu.lock.lock()
            defer { gpu.lock.unlock() }
            sizes.tokens = UInt32(count)
            let bytes = count * Int(sizes.hidden) * 4
            let input = try gpu.room("residual", bytes), output = try gpu.room("out", bytes)
            input.contents().copyMemory(from: residual, byteCount: bytes)
            try gpu.run { encode in
                try choose(encode, count)
                if count == 1 { try one(encode) } else { try many(encode, count) }
            }
            UnsafeMutableRawPointer(out).copyMemory(from: output.contents(), byteCount: bytes)
        }

        private func choose(_ encode: Encoding, _ count: Int) throws {
            let (pairs, floats) = (count * Int(sizes.perToken) * 4, count * Int(sizes.hidden) * 4)
            try encode(
                "experts_norm", sizes,
                [gpu.room("residual", floats), weights["norm"], gpu.room("x", floats)],
                groups: (count, 1), simdgroups: 8, memory: 8 * 4)
            try encode(
                "experts_router", sizes,
                [
                    gpu.room("x", floats), weights["router"],
                    gpu.room("scores", count * Int(sizes.experts) * 4),
                ],
                groups: (ceiling(sizes.experts, 8), count), simdgroups: 8)
            try encode(
                "experts_select", sizes,
                [
                    gpu.room("scores", count * Int(sizes.experts) * 4), weights["expert_bias"],
                    gpu.room("experts", pairs), gpu.room("weights", pairs),
                ],
                groups: (count, 1), simdgroups: 1)
        }

        private func one(_ encode: Encoding) throws {
            let slots = Int(sizes.perToken), block = 128
            let hidden = try gpu.room("hidden", slots * Int(sizes.width) * 4)
            let shared = try gpu.room("shared", Int(sizes.shared) * 4)
            let (floats, pairs) = (Int(sizes.hidden) * 4, slots * 4)
            try encode(
                "experts_gate_up_one", sizes,
                [
                    gpu.room("x", floats), weights["gate_up_codes"], weights["gate_up_scales"],
                    gpu.room("experts", pairs), hidden,
                ],
                groups: (ceiling(sizes.width, block), slots), simdgroups: 8, memory: 8 * 2 * block * 4)
            try encode(
                "shared_gate_up_one", sizes,
                [
                    gpu.room("x", floats), weights["shared_gate_codes"], weights["shared_gate_scales"],
                    weights["shared_up_codes"], weights["shared_up_scales"], shared,
                ],
                groups: (ceiling(sizes.shared, 8), 1), simdgroups: 8)
            try encode(
                "experts_down_one", sizes,
                [
                    hidden, weights["down_codes"], weights["down_scales"], gpu.room("experts", pairs),
                    gpu.room("weights", pairs), gpu.room("routed", floats),
                ],
                groups: (ceiling(sizes.hidden, block), 1), simdgroups: 16, memory: 16 * block * 4)
            try encode(
                "shared_down_one", sizes,
                [
                    shared, weights["shared_down_codes"], weights["shared_down_scales"],
                    gpu.room("residual", floats), gpu.room("routed", floats), gpu.room("out", floats),
                ],
                groups: (ceiling(sizes.hidden, 8), 1), simdgroups: 8)
        }

        private func many(_ encode: Encoding, _ count: Int) throws {
            let rows = 32, columns = 64, memory = (rows * 32 + 32 * columns) * 4
            let entries = count * Int(sizes.perToken)
            // Each expert's last tile may be short.
            let most = entries / rows + min(entries, Int(sizes.experts))
            let (pairs, floats) = (entries * 4, count * Int(sizes.hidden) * 4)
            let (order, places) = (try gpu.room("order", pairs), try gpu.room("places", pairs))
            let tiles = try gpu.room("tiles", most * MemoryLayout<Tile>.stride)
            let tileCount = try gpu.room("tile_count", 4)
            let hidden = try gpu.room("hidden", entries * Int(sizes.width) * 4)
            let routed = try gpu.room("routed", entries * Int(sizes.hidden) * 4)
            let shared = try gpu.room("shared", count * Int(sizes.shared) * 4)
            try encode(
                "experts_sort", sizes, [gpu.room("experts", pairs), order, places, tiles, tileCount],
                groups: (1, 1), simdgroups: 8, memory: ceiling(sizes.experts, 4) * 16)
            try encode(
                "experts_gate_up_many", sizes,
                [
                    gpu.room("x", floats), weights["gate_up_codes"], weights["gate_up_scales"], order, tiles,
                    tileCount, hidden,
                ],
                groups: (ceiling(sizes.width, 32), most), simdgroups: 4, memory: memory)
            try encode(
                "shared_gate_up_many", sizes,
                [
                    gpu.room("x", floats), weights["shared_gate_codes"], weights["shared_gate_scales"],
                    weights["shared_up_codes"], weights["shared_up_scales"], shared,
                ],
                groups: (ceiling(sizes.shared, 32), ceiling(count, rows)), simdgroups: 4, memory: memory)
            try encode(
                "experts_down_many", sizes,
                [
                    hidden, weights["down_codes"], weights["down_scales"], order, tiles, tileCount,
                    gpu.room("weights", pairs), routed,
                ],
                groups: (ceiling(sizes.hidden, columns), most), simdgroups: 4, memory: memory)
            try encode(
                "shared_down_many", sizes,
                [
                    shared, weights["shared_down_codes"], weights["shared_down_scales"],
                    gpu.room("residual", floats), routed, places, gpu.room("out", floats),
                ],
                groups: (ceiling(sizes.hidden, columns), ceiling(count, rows)), simdgroups: 4,
                memory: memory)
        }

        private func ceiling(_ count: some BinaryInteger, _ by: Int) -> Int { (Int(count) + by - 1) / by }
    }
#endif
