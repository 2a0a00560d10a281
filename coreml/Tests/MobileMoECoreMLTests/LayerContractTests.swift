import CoreML
import Foundation
import MobileMoE
import MobileMoELayers
import Testing

@testable import MobileMoECoreML

extension LayerTests {
    /// What coreml/README.md says besides arithmetic: how parameters, weights and arrays may come, and
    /// that everything else is an error with a sentence.
    @Suite struct LayerContractTests {
        private let embedding = try! Golden("embedding")
        private let attention = try! Golden("attention")
        private let experts = try! Golden("experts")
        private let head = try! Golden("head-last")

        private func sentence(_ work: () throws -> Void) -> String {
            do {
                try work()
                return "nothing was thrown"
            } catch {
                return "\(error)"
            }
        }

        private func array(_ golden: Golden, _ one: String, _ name: String) throws -> MLMultiArray {
            let tensor = golden.input(one, name)
            return try MLMultiArray(tensor.floats, tensor.shape)
        }

        /// A layer with its weights.
        private func made<Layer: MobileMoELayer>(
            _ type: Layer.Type, _ golden: Golden, _ changes: [String: Any] = [:]
        ) throws -> Layer {
            let layer = try Layer(parameters: golden.parameters.merging(changes) { $1 })
            try layer.setWeightData(golden.entries().map(\.data))
            return layer
        }

        @Test func parametersMayBeTexts() throws {
            let texts = experts.parameters.mapValues { "\($0)" as Any }
            for normalize in ["yes", "True", "1", 1, true] as [Any] {
                let parameters = texts.merging(["normalize": normalize]) { $1 }
                let layer = try MobileMoEExperts(parameters: parameters)
                try layer.setWeightData(experts.entries().map(\.data))
                let out = try MLMultiArray(nothing: [5, 64])
                try layer.evaluate(inputs: [array(experts, "block", "residual")], outputs: [out])
                #expect(difference(out.floats, experts.output("block", "residual").floats) < 1e-5)
            }
        }

        @Test func parametersThatAreNotAsThePageSays() {
            func told(_ name: String, _ value: Any?) -> String {
                var parameters = experts.parameters
                parameters[name] = value
                return sentence { _ = try MobileMoEExperts(parameters: parameters) }
            }
            let owner = "MobileMoEExperts of layer 1: "
            #expect(told("experts", nil) == owner + "it has no parameter 'experts'.")
            #expect(told("experts", 1.5) == owner + "its parameter 'experts' is '1.5', which is not a whole number.")
            #expect(told("experts", "many") == owner + "its parameter 'experts' is 'many', which is not a whole number.")
            #expect(told("experts", -1) == owner + "its parameter 'experts' is -1; it must be from 1 on.")
            #expect(told("experts", 1 << 40).contains("it must be from 1 on"))
            #expect(told("experts_per_token", 8).contains("it selects 8 of 7 experts"))
            #expect(told("norm_eps", "small").contains("which is not a number"))
            #expect(told("norm_eps", Double.nan).contains("which is not a number"))
            #expect(told("normalize", 2).contains("which is not true or false"))
            #expect(told("normalize_eps", 0.1).contains("the kernels have 1e-20"))
            #expect(told("version", 2).contains("it is of version 2 of the layers' contract"))
            #expect(told("group_size", 64).contains("'group_size' is 64, not 32"))
            #expect(told("hidden_size", 48).contains("no multiple of 32"))
            #expect(told("expert_width", 16).contains("no multiple of 32"))
            let huge = experts.parameters.merging(
                ["hidden_size": Int(Int32.max) - 31, "expert_width": Int(Int32.max) - 31]) { $1 }
            #expect(sentence { _ = try MobileMoEExperts(parameters: huge) }.contains("is too large"))
            #expect(told("layer", "first").contains("which is not a whole number"))
            let heads = attention.parameters.merging(["kv_heads": 4]) { $1 }
            #expect(sentence { _ = try MobileMoEAttention(parameters: heads) }.contains("do not divide"))
            let logits = head.parameters.merging(["logits": "some"]) { $1 }
            #expect(sentence { _ = try MobileMoEHead(parameters: logits) }.contains("not last or all"))
        }

        @Test func weightsThatAreNotAsThePageSays() throws {
            let layer = try MobileMoEExperts(parameters: experts.parameters)
            let residual = try array(experts, "decode", "residual"), out = try MLMultiArray(nothing: [1, 64])
            #expect(
                sentence { try layer.evaluate(inputs: [residual], outputs: [out]) }
                    .hasSuffix("it was not given its weights."))
            // Core ML asks for shapes before it gives weights.
            #expect(try layer.outputShapes(forInputShapes: [[1, 5, 64]]) == [[5, 64]])
            var weights = experts.entries().map(\.data)
            #expect(sentence { try layer.setWeightData([]) }.contains("given 0 weights and takes 13"))
            weights[3].removeLast()
            #expect(
                sentence { try layer.setWeightData(weights) }.contains(
                    "'gate_up_codes' has 14335 bytes instead of 14336"))
            let rows = try MobileMoECacheRows(parameters: Golden("cache-rows").parameters)
            try rows.setWeightData([])
            #expect(sentence { try rows.setWeightData([Data()]) }.contains("given 1 weights and takes none"))
        }

        /// Room of [2, 3 + rows] around an array, so that nothing of it is dense.
        private func spread(_ values: [Float], _ shape: [Int]) throws -> MLMultiArray {
            let row = 2 * shape.last! + 3, rows = shape.dropLast().reduce(1, *)
            let room = UnsafeMutablePointer<Float>.allocate(capacity: rows * row)
            room.initialize(repeating: .nan, count: rows * row)
            var strides = [2], step = row
            for size in shape.dropLast().reversed() {
                strides.insert(step, at: 0)
                step *= size
            }
            for (i, value) in values.enumerated() { room[i / shape.last! * row + 2 * (i % shape.last!)] = value }
            return try MLMultiArray(
                dataPointer: room, shape: ([1, 1] + shape).map { NSNumber(value: $0) }, dataType: .float32,
                strides: ([7, 7] + strides).map { NSNumber(value: $0) },
                deallocator: { $0.deallocate() })
        }

        private func gathered(_ array: MLMultiArray) -> [Float] {
            let (shape, strides) = (array.shape.map(\.intValue), array.strides.map(\.intValue))
            let first = array.dataPointer.assumingMemoryBound(to: Float.self)
            return (0..<array.count).map { index in
                var (rest, place) = (index, 0)
                for axis in shape.indices.reversed() {
                    place += rest % shape[axis] * strides[axis]
                    rest /= shape[axis]
                }
                return first[place]
            }
        }

        @Test func leadingOnesAndStridesAreFollowed() throws {
            let layer = try made(MobileMoEAttention.self, attention)
            let names = ["residual", "position", "key_cache", "value_cache"]
            let inputs = try names.map { name in
                let tensor = attention.input("block", name)
                return try spread(tensor.floats, tensor.shape)
            }
            let wanted = ["residual", "new_keys", "new_values"].map { attention.output("block", $0) }
            let outputs = try wanted.map {
                try spread([Float](repeating: 0, count: $0.shape.reduce(1, *)), $0.shape)
            }
            try layer.evaluate(inputs: inputs, outputs: outputs)
            for (output, wanted) in zip(outputs, wanted) {
                #expect(difference(gathered(output), wanted.floats) < 1e-5)
            }
        }

        @Test func arraysThatAreNotAsThePageSays() throws {
            let layer = try made(MobileMoEExperts.self, experts)
            let residual = try array(experts, "decode", "residual"), out = try MLMultiArray(nothing: [1, 64])
            func told(_ inputs: [MLMultiArray], _ outputs: [MLMultiArray]) -> String {
                sentence { try layer.evaluate(inputs: inputs, outputs: outputs) }
            }
            let half = try MLMultiArray(shape: [1, 64], dataType: .float16)
            #expect(told([half], [out]).contains("'residual' is not of float32"))
            #expect(told([residual], [half]).contains("'residual' is not of float32"))
            #expect(told([], [out]).contains("0 inputs and 1 outputs instead of 1 and 1"))
            #expect(try told([MLMultiArray(nothing: [1, 32])], [out]).contains("[1, 32] instead of [1, 64]"))
            #expect(try told([residual], [MLMultiArray(nothing: [2, 64])]).contains("[2, 64] instead of [1, 64]"))
            #expect(try told([MLMultiArray(nothing: [2, 1, 64])], [out]).contains("which has not 2 sizes"))
            #expect(try told([MLMultiArray(nothing: [64])], [out]).contains("which has not 2 sizes"))
            #expect(sentence { _ = try layer.outputShapes(forInputShapes: []) }.contains("has 1 inputs"))
        }

        @Test(arguments: [-1, 96, 1.5, .nan, .infinity] as [Float])
        func tokensThatAreNone(_ token: Float) throws {
            let layer = try made(MobileMoEEmbedding.self, embedding)
            #expect(
                sentence {
                    try layer.evaluate(
                        inputs: [MLMultiArray([3, token], [2])], outputs: [MLMultiArray(nothing: [2, 64])])
                }.contains("token 1 is \(token); tokens are whole and from 0 to 95"))
        }

        @Test(arguments: [-1, 20, 0.5, .nan, 1e20] as [Float])
        func positionsBeyondTheContext(_ position: Float) throws {
            let layer = try made(MobileMoEAttention.self, attention)
            let inputs = [
                try array(attention, "block", "residual"), try MLMultiArray([position], [1]),
                try array(attention, "block", "key_cache"), try array(attention, "block", "value_cache"),
            ]
            let outputs = try [[5, 64], [2, 5, 16], [2, 5, 16]].map { try MLMultiArray(nothing: $0) }
            #expect(
                sentence { try layer.evaluate(inputs: inputs, outputs: outputs) }.contains(
                    "5 tokens at position \(position) do not fit into the context of 24"))
        }

        @Test func aTableServesAsLongAsAnyLayerHasIt() throws {
            let layer = try made(MobileMoEHead.self, head)
            let residual = try array(head, "decode", "residual")
            func logits(_ layer: MobileMoEHead) throws -> [Float] {
                let out = try MLMultiArray(nothing: [1, 96])
                try layer.evaluate(inputs: [residual], outputs: [out])
                return out.floats
            }
            func table() throws -> MobileMoEEmbedding {
                let layer = try MobileMoEEmbedding(parameters: head.parameters)
                try layer.setWeightData(head.entries("table").map(\.data))
                return layer
            }
            var first: MobileMoEEmbedding? = try table()
            var second: MobileMoEEmbedding? = try table()
            first = nil  // takes out only its own
            #expect(try difference(logits(layer), head.output("decode", "logits").floats) < 1e-5)
            second = nil
            // What was found is kept; a new head finds nothing.
            #expect(try difference(logits(layer), head.output("decode", "logits").floats) < 1e-5)
            _ = (first, second)
            let stranger = try made(MobileMoEHead.self, head, ["table": "none"])
            #expect(sentence { _ = try logits(stranger) }.contains("no MobileMoEEmbedding has the table none"))
        }

        @Test func aTableThatWasChangedOnTheWayIsRefused() throws {
            let layer = try MobileMoEEmbedding(parameters: embedding.parameters)
            var weights = embedding.entries().map(\.data)
            weights[1][0] ^= 1
            #expect(sentence { try layer.setWeightData(weights) }.contains("the weights were changed on the way"))
        }

        @Test func aBytesTwoCodes() throws {
            let golden = try Golden("unpack")
            let layer = try MobileMoEEmbedding(parameters: [
                "version": 1, "vocab_size": 4, "hidden_size": 128, "group_size": 32,
                "table": SHA256Sum.of(golden.tensors["codes"]!.data, golden.tensors["scales"]!.data),
            ])
            try layer.setWeightData(["codes", "scales"].map { golden.tensors[$0]!.data })
            let out = try MLMultiArray(nothing: [4, 128])
            try layer.evaluate(inputs: [MLMultiArray([0, 1, 2, 3], [4])], outputs: [out])
            #expect(out.floats == golden.tensors["values"]!.floats)
        }

        /// The rotation of far positions, by the class's own code: keys of a layer whose key projection
        /// is the identity, without norms.
        @Test func rotationFarIntoTheContext() throws {
            let golden = try Golden("rotate")
            let (d, context) = (64, 8192)
            var identity = [UInt8](repeating: 0, count: d * d / 2)
            for i in 0..<d { identity[i * d / 2 + i / 2] = i % 2 == 0 ? 0x01 : 0x10 }
            let ones = bytes([UInt16](repeating: 0x3C00, count: d * d / 32))
            let linear = [Data(identity), ones]
            let weights = [bytes([Float](repeating: 1, count: d))] + linear + linear + linear + linear
                + [golden.tensors["periods"]!.data]
            let layer = try MobileMoEAttention(parameters: [
                "version": 1, "layer": 0, "layers": 1, "hidden_size": d, "heads": 1, "kv_heads": 1,
                "head_dim": d, "context": context, "group_size": 32, "norm_eps": 0, "qk_norm": false,
                "qk_norm_eps": 1, "score_scale": 0.125,
            ])
            try layer.setWeightData(weights)
            let cache = try MLMultiArray([Float](repeating: 0, count: context * d), [1, 1, context, d])
            let x = golden.tensors["x"]!.floats, rotated = golden.tensors["rotated"]!.floats
            for (row, position) in golden.tensors["positions"]!.floats.enumerated() {
                let values = Array(x[row * d..<(row + 1) * d])
                let root = (values.map { $0 * $0 }.reduce(0, +) / Float(d)).squareRoot()
                let outputs = try [[1, d], [1, 1, d], [1, 1, d]].map { try MLMultiArray(nothing: $0) }
                try layer.evaluate(
                    inputs: [MLMultiArray(values, [1, d]), MLMultiArray([position], [1]), cache, cache],
                    outputs: outputs)
                let keys = outputs[1].floats.map { $0 * root }
                #expect(difference(keys, Array(rotated[row * d..<(row + 1) * d])) < 1e-6)
            }
        }
    }
}

extension SHA256Sum {
    static func of(_ one: Data, _ other: Data) -> String {
        (one + other).withUnsafeBytes { SHA256Sum.of($0) }
    }
}
