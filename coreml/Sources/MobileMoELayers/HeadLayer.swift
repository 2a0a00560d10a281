import Foundation
import MobileMoE
import MobileMoEKernel

/// MobileMoEHead: residual [T, hidden_size] -> logits [1 or T, vocab_size] (section 5.5).
public final class HeadLayer: PortableLayer {
    private let parameters: LayerParameters
    private let vocabulary, hidden: Int
    private let eps: Double
    private let isLastOnly: Bool
    private let tableName: String
    private let weights: LayerWeights
    private let kernel: LayerKernel
    private let tables: FoundTable

    public init(parameters values: [String: Any]) throws {
        parameters = try LayerParameters(values, of: "MobileMoEHead")
        try parameters.checkVersion()
        vocabulary = try parameters.size("vocab_size")
        hidden = try parameters.size("hidden_size")
        eps = try parameters.number("norm_eps")
        switch try parameters.text("logits") {
        case "last": isLastOnly = true
        case "all": isLastOnly = false
        case let other: throw parameters.error("its parameter 'logits' is '\(other)', not last or all.")
        }
        tableName = try parameters.text("table")
        weights = try LayerWeights([.floats("norm", hidden)], parameters)
        kernel = try .current()
        tables = FoundTable()
    }

    public func setWeightData(_ data: [Data]) throws { try weights.set(data) }

    public func outputShapes(forInputShapes inputs: [[Int]]) throws -> [[Int]] {
        let residual = try shapes(inputs, 1, parameters)[0]
        let count = try lastSizes(2, of: residual, "residual", parameters)[0]
        return [[isLastOnly ? 1 : count, vocabulary]]
    }

    public func evaluate(inputs: [LayerArray], outputs: [LayerArray]) throws {
        try weights.check()
        let call = try LayerCall(inputs, outputs, (1, 1), parameters)
        let count = try inputs[0].lastSizes(2, "residual", parameters)[0]
        let rows = isLastOnly ? 1 : count
        // Only now is it sure that the embedding has its weights: it computed before, in this call.
        let table = try tables.find(tableName, parameters)
        let sizes = try INT4.entries("table", vocabulary, hidden, of: parameters).map(\.bytes)
        guard [table.codes.count, table.scales.count] == sizes else {
            throw parameters.error("the embedding's table has another size than the head's.")
        }
        var codes = mobilemoe_int4(codes: table.codes.tensor, scales: table.scales.tensor)
        var norm = try weights["norm"].tensor
        try call.read(0, [count, hidden], "residual") { residual in
            try call.write(0, [rows, vocabulary], "logits") { logits in
                try kernel.call({
                    mobilemoe_head_workspace($0, Int32(rows), Int32(vocabulary), Int32(hidden))
                }) {
                    mobilemoe_head(
                        $0, residual + (count - rows) * hidden, &norm, Float(eps), &codes,
                        Int32(vocabulary), Int32(hidden), Int32(rows), logits, $1, $2, $3)
                }
            }
        }
    }
}

/// The table that a head found in its first call.
private final class FoundTable: @unchecked Sendable {  // under `lock`
    private let lock = NSLock()
    private var table: Table?

    func find(_ name: String, _ parameters: LayerParameters) throws -> Table {
        try lock.withLock {
            if let table { return table }
            guard let found = Table.find(name) else {
                throw parameters.error(
                    "no MobileMoEEmbedding has the table \(name), which it multiplies by. Load the whole "
                        + "model, as it was exported.")
            }
            table = found
            return found
        }
    }
}
