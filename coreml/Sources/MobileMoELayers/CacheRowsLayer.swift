import Foundation
import MobileMoE

/// MobileMoECacheRows: each layer's rows [kv_heads, T, head_dim] -> all of them, stacked (section 5.4).
public final class CacheRowsLayer: PortableLayer {
    private let parameters: LayerParameters
    private let layers, heads, width: Int
    private let weights: LayerWeights

    public init(parameters values: [String: Any]) throws {
        parameters = try LayerParameters(values, of: "MobileMoECacheRows")
        try parameters.checkVersion(grouped: false)
        layers = try parameters.size("layers")
        heads = try parameters.size("kv_heads")
        width = try parameters.size("head_dim")
        weights = try LayerWeights([], parameters)
    }

    public func setWeightData(_ data: [Data]) throws { try weights.set(data) }

    public func outputShapes(forInputShapes inputs: [[Int]]) throws -> [[Int]] {
        let rows = try shapes(inputs, layers, parameters)[0]
        return [[layers] + (try lastSizes(3, of: rows, "rows", parameters))]
    }

    public func evaluate(inputs: [LayerArray], outputs: [LayerArray]) throws {
        let call = try LayerCall(inputs, outputs, (layers, 1), parameters)
        let count = try inputs[0].lastSizes(3, "rows", parameters)[1]
        let size = heads * count * width
        try call.write(0, [layers, heads, count, width], "stacked") { stacked in
            for layer in 0..<layers {
                try call.read(layer, [heads, count, width], "rows of layer \(layer)") { rows in
                    (stacked + layer * size).update(from: rows, count: size)
                }
            }
        }
    }
}
