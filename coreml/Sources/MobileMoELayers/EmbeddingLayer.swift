import Foundation
import MobileMoE
import MobileMoEKernel

/// MobileMoEEmbedding: tokens [T] -> residual [T, hidden_size] (coreml/README.md, section 5.1).
public final class EmbeddingLayer: PortableLayer {
    private let parameters: LayerParameters
    private let vocabulary, hidden: Int
    private let tableName: String
    private let weights: LayerWeights
    private let kernel: LayerKernel
    private let registration: TableRegistration

    public init(parameters values: [String: Any]) throws {
        parameters = try LayerParameters(values, of: "MobileMoEEmbedding")
        try parameters.checkVersion()
        vocabulary = try parameters.size("vocab_size")
        hidden = try parameters.size("hidden_size")
        tableName = try parameters.text("table")
        weights = try LayerWeights(
            INT4.entries("table", vocabulary, hidden, of: parameters), parameters)
        kernel = try .current()
        registration = TableRegistration(tableName)
        if weights.isComplete { try publish() }
    }

    public func setWeightData(_ data: [Data]) throws {
        try weights.set(data)
        if weights.isComplete { try publish() }
    }

    /// Lets a head find the table.
    private func publish() throws {
        let table = try Table(codes: weights["table_codes"], scales: weights["table_scales"])
        #if DEBUG
            // Proves that both kinds of entries come out of the package unchanged.
            let found = SHA256Sum.of(table.codes.buffer, table.scales.buffer)
            guard found == tableName.lowercased() else {
                throw parameters.error(
                    "its table's SHA-256 is \(found) instead of \(tableName): the weights were changed on "
                        + "the way. Export the model with --weights-beside, or copy its file again.")
            }
        #endif
        registration.publish(table)
    }

    public func outputShapes(forInputShapes inputs: [[Int]]) throws -> [[Int]] {
        let tokens = try shapes(inputs, 1, parameters)[0]
        return [[try lastSizes(1, of: tokens, "tokens", parameters)[0], hidden]]
    }

    public func evaluate(inputs: [LayerArray], outputs: [LayerArray]) throws {
        try weights.check()
        let call = try LayerCall(inputs, outputs, (1, 1), parameters)
        let count = try inputs[0].lastSizes(1, "tokens", parameters)[0]
        let tokens = try call.read(0, [count], "tokens") { values in
            try (0..<count).map { index in
                guard let token = wholeNumber(values[index]), (0..<vocabulary).contains(token) else {
                    throw parameters.error(
                        "token \(index) is \(values[index]); tokens are whole and from 0 to "
                            + "\(vocabulary - 1).")
                }
                return Int32(token)
            }
        }
        var table = try weights.int4("table")
        try call.write(0, [count, hidden], "residual") { residual in
            try kernel.call({ _ in 0 }) { runtime, _, _, error in
                mobilemoe_embedding(
                    runtime, &table, Int32(vocabulary), Int32(hidden), tokens, Int32(count), residual,
                    error)
            }
        }
    }
}

extension WeightBytes {
    var buffer: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: start, count: count) }
}
