import Foundation
import MobileMoE
import MobileMoEKernel

/// MobileMoEExperts: residual -> residual with the experts' sum (section 5.3).
public final class ExpertsLayer: PortableLayer {
    public let sizes: ExpertsSizes
    private let parameters: LayerParameters
    private let weights: LayerWeights
    private let kernel: LayerKernel

    public init(parameters values: [String: Any]) throws {
        parameters = try LayerParameters(values, of: "MobileMoEExperts")
        try parameters.checkVersion()
        sizes = try ExpertsSizes(parameters)
        weights = try LayerWeights(sizes.entries(parameters), parameters)
        kernel = try .current()
    }

    public func setWeightData(_ data: [Data]) throws { try weights.set(data) }

    public func outputShapes(forInputShapes inputs: [[Int]]) throws -> [[Int]] {
        let residual = try shapes(inputs, 1, parameters)[0]
        return [[try lastSizes(2, of: residual, "residual", parameters)[0], sizes.hidden]]
    }

    /// An entry of the layer's weights by its name in the contract.
    public func weight(_ name: String) throws -> WeightBytes { try weights[name] }

    public func evaluate(inputs: [LayerArray], outputs: [LayerArray]) throws {
        try evaluate(inputs: inputs, outputs: outputs) { residual, out, count in
            try computeOnCPU(residual, out, count)
        }
    }

    /// Checks the arrays and lets `compute` fill `out` from `residual`, both [count, hidden].
    public func evaluate(
        inputs: [LayerArray], outputs: [LayerArray],
        _ compute: (
            _ residual: UnsafePointer<Float>, _ out: UnsafeMutablePointer<Float>, _ count: Int
        ) throws -> Void
    ) throws {
        try weights.check()
        let call = try LayerCall(inputs, outputs, (1, 1), parameters)
        let count = try inputs[0].lastSizes(2, "residual", parameters)[0]
        try call.read(0, [count, sizes.hidden], "residual") { residual in
            try call.write(0, [count, sizes.hidden], "residual") { out in
                try compute(residual, out, count)
            }
        }
    }

    private func computeOnCPU(
        _ residual: UnsafePointer<Float>, _ out: UnsafeMutablePointer<Float>, _ count: Int
    ) throws {
        let x = try kernel.norm(
            residual, weights["norm"], eps: sizes.normEps, count: count, width: sizes.hidden)
        var shape = sizes.kernelShape
        var tensors = mobilemoe_moe_weights(
            router: try weights["router"].tensor, expert_bias: try weights["expert_bias"].tensor,
            gate_up: try weights.int4("gate_up"), down: try weights.int4("down"),
            shared_gate: try weights.int4("shared_gate"), shared_up: try weights.int4("shared_up"),
            shared_down: try weights.int4("shared_down"))
        let sum = try [Float](unsafeUninitializedCapacity: x.count) { sum, filled in
            try kernel.call({ mobilemoe_moe_ffn_workspace($0, &shape, Int32(count)) }) {
                mobilemoe_moe_ffn(
                    $0, &shape, &tensors, x, Int32(count), sum.baseAddress, $1, $2, $3)
            }
            filled = x.count
        }
        for i in 0..<x.count { out[i] = residual[i] + sum[i] }
    }
}

/// A layer's sizes and settings, checked.
public struct ExpertsSizes: Sendable {
    public let hidden, width, shared, experts, perToken: Int
    public let normEps, weightScale: Double
    public let isNormalized: Bool

    /// What the kernels add to a sum of weights before they divide by it.
    private static let normalizeEps = 1e-20

    init(_ parameters: LayerParameters) throws {
        hidden = try parameters.size("hidden_size")
        width = try parameters.size("expert_width")
        shared = try parameters.size("shared_width")
        experts = try parameters.size("experts")
        perToken = try parameters.size("experts_per_token")
        normEps = try parameters.number("norm_eps")
        weightScale = try parameters.number("weight_scale")
        isNormalized = try parameters.truth("normalize")
        let eps = try parameters.number("normalize_eps")
        guard Float(eps) == Float(Self.normalizeEps) || !isNormalized else {
            throw parameters.error(
                "its parameter 'normalize_eps' is \(eps); the kernels have \(Self.normalizeEps).")
        }
        for (name, size) in [("hidden_size", hidden), ("expert_width", width), ("shared_width", shared)] {
            guard size % INT4.group == 0 else {
                throw parameters.error("its \(name) \(size) is no multiple of \(INT4.group).")
            }
        }
        guard perToken <= experts, perToken <= 64, experts <= 1024 else {
            throw parameters.error(
                "it selects \(perToken) of \(experts) experts; the kernels select at most 64 of 1,024.")
        }
    }

    func entries(_ parameters: LayerParameters) throws -> [LayerEntry] {
        try [.floats("norm", hidden), .floats("router", experts * hidden), .floats("expert_bias", experts)]
            + INT4.entries("gate_up", hidden, 2 * width, of: parameters, experts: experts)
            + INT4.entries("down", width, hidden, of: parameters, experts: experts)
            + INT4.entries("shared_gate", shared, hidden, of: parameters)
            + INT4.entries("shared_up", shared, hidden, of: parameters)
            + INT4.entries("shared_down", hidden, shared, of: parameters)
    }

    var kernelShape: mobilemoe_moe_shape {
        mobilemoe_moe_shape(
            hidden_size: Int32(hidden), intermediate_size: Int32(width),
            intermediate_size_mlp: Int32(shared), num_local_experts: Int32(experts),
            num_experts_per_tok: Int32(perToken), norm_topk_prob: isNormalized ? 1 : 0,
            routed_scaling_factor: Float(weightScale))
    }
}
