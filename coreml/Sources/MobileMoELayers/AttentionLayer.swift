import Foundation
import MobileMoE
import MobileMoEKernel

/// MobileMoEAttention: residual and caches -> residual and the layer's new rows (section 5.2).
public final class AttentionLayer: PortableLayer {
    private let parameters: LayerParameters
    private let layer, layers, hidden, heads, kvHeads, width, context: Int
    private let eps: Double
    private let shape: mobilemoe_attention_shape
    private let weights: LayerWeights
    private let kernel: LayerKernel

    public init(parameters values: [String: Any]) throws {
        parameters = try LayerParameters(values, of: "MobileMoEAttention")
        try parameters.checkVersion()
        layers = try parameters.size("layers")
        layer = try parameters.size("layer", least: 0)
        hidden = try parameters.size("hidden_size")
        heads = try parameters.size("heads")
        kvHeads = try parameters.size("kv_heads")
        width = try parameters.size("head_dim")
        context = try parameters.size("context")
        eps = try parameters.number("norm_eps")
        guard layer < layers else {
            throw parameters.error("its parameter 'layer' is \(layer), and there are \(layers) layers.")
        }
        guard heads % kvHeads == 0 else {
            throw parameters.error("\(heads) query heads do not divide among \(kvHeads) of keys.")
        }
        guard width % 2 == 0 else { throw parameters.error("its head_dim \(width) is not even.") }
        shape = mobilemoe_attention_shape(
            heads: Int32(heads), kv_heads: Int32(kvHeads), head_dim: Int32(width),
            context: Int32(context), qk_norm: try parameters.truth("qk_norm") ? 1 : 0,
            qk_norm_eps: Float(try parameters.number("qk_norm_eps")),
            score_scale: Float(try parameters.number("score_scale")))
        weights = try LayerWeights(
            [.floats("norm", hidden)]
                + INT4.entries("q", heads * width, hidden, of: parameters)
                + INT4.entries("k", kvHeads * width, hidden, of: parameters)
                + INT4.entries("v", kvHeads * width, hidden, of: parameters)
                + INT4.entries("o", hidden, heads * width, of: parameters)
                + [.floats("periods", width / 2)], parameters)
        kernel = try .current()
    }

    public func setWeightData(_ data: [Data]) throws { try weights.set(data) }

    public func outputShapes(forInputShapes inputs: [[Int]]) throws -> [[Int]] {
        let residual = try shapes(inputs, 4, parameters)[0]
        let count = try lastSizes(2, of: residual, "residual", parameters)[0]
        return [[count, hidden], [kvHeads, count, width], [kvHeads, count, width]]
    }

    public func evaluate(inputs: [LayerArray], outputs: [LayerArray]) throws {
        try weights.check()
        let call = try LayerCall(inputs, outputs, (4, 3), parameters)
        let count = try inputs[0].lastSizes(2, "residual", parameters)[0]
        let position = try call.read(1, [1], "position") { value in
            guard let position = wholeNumber(value[0]), position >= 0, position <= context - count else {
                throw parameters.error(
                    "\(count) tokens at position \(value[0]) do not fit into the context of \(context).")
            }
            return position
        }
        let cache = [layers, kvHeads, context, width], rows = [kvHeads, count, width]
        let ofLayer = layer * kvHeads * context * width
        let (queries, keys) = (heads * width, kvHeads * width)
        try call.read(0, [count, hidden], "residual") { residual in
            let x = try kernel.norm(
                residual, weights["norm"], eps: eps, count: count, width: hidden)
            let q = try kernel.linear(weights.int4("q"), rows: queries, columns: hidden, x, count: count)
            let k = try kernel.linear(weights.int4("k"), rows: keys, columns: hidden, x, count: count)
            let v = try kernel.linear(weights.int4("v"), rows: keys, columns: hidden, x, count: count)
            var mixed = [Float](repeating: 0, count: count * queries)
            try call.read(2, cache, "key_cache") { keyCache in
                try call.read(3, cache, "value_cache") { valueCache in
                    try call.write(1, rows, "new_keys") { newKeys in
                        try call.write(2, rows, "new_values") { newValues in
                            try attend(
                                q, k, v, position, count, keyCache + ofLayer, valueCache + ofLayer,
                                newKeys, newValues, &mixed)
                        }
                    }
                }
            }
            let added = try kernel.linear(
                weights.int4("o"), rows: hidden, columns: queries, mixed, count: count)
            try call.write(0, [count, hidden], "residual") { out in
                for i in 0..<count * hidden { out[i] = residual[i] + added[i] }
            }
        }
    }

    private func attend(
        _ q: [Float], _ k: [Float], _ v: [Float], _ position: Int, _ count: Int,
        _ keyCache: UnsafePointer<Float>, _ valueCache: UnsafePointer<Float>,
        _ newKeys: UnsafeMutablePointer<Float>, _ newValues: UnsafeMutablePointer<Float>,
        _ mixed: inout [Float]
    ) throws {
        var shape = shape
        // The kernel wants floats where floats begin, which bytes of a package need not do.
        let periods = try weights["periods"].buffer.floats(width / 2)
        try kernel.call({ mobilemoe_attention_workspace($0, &shape, Int32(position), Int32(count)) }) {
            mobilemoe_attention(
                $0, &shape, q, k, v, Int32(position), Int32(count), keyCache, valueCache, periods,
                newKeys, newValues, &mixed, $1, $2, $3)
        }
    }
}

extension UnsafeRawBufferPointer {
    func floats(_ count: Int) -> [Float] {
        (0..<count).map { loadUnaligned(fromByteOffset: 4 * $0, as: Float.self) }
    }
}
