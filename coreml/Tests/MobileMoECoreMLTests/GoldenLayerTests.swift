import CoreML
import Foundation
import Metal
import MobileMoE
import MobileMoELayers
import Testing

@testable import MobileMoECoreML

extension LayerTests {
    /// The classes as Core ML calls them, on the golden files: the contract's limit of float32.
    @Suite struct GoldenLayerTests {
        nonisolated(unsafe) private static let classes: [String: any MLCustomLayer.Type] = [
            "embedding": MobileMoEEmbedding.self, "attention": MobileMoEAttention.self,
            "attention-plain": MobileMoEAttention.self, "experts": MobileMoEExperts.self,
            "experts-plain": MobileMoEExperts.self, "cache-rows": MobileMoECacheRows.self,
            "head-last": MobileMoEHead.self, "head-all": MobileMoEHead.self,
        ]

        private static let arrays: [String: (inputs: [String], outputs: [String])] = [
            "embedding": (["tokens"], ["residual"]),
            "attention": (
                ["residual", "position", "key_cache", "value_cache"], ["residual", "new_keys", "new_values"]
            ),
            "experts": (["residual"], ["residual"]),
            "cache": (["rows_0", "rows_1", "rows_2"], ["stacked"]),
            "head": (["residual"], ["logits"]),
        ]

        /// Runs every case of a file through `layer`; -> the largest difference from the golden outputs.
        private func run(_ layer: any MLCustomLayer, _ name: String, _ golden: Golden) throws -> Float {
            let names = Self.arrays[String(name.split(separator: "-")[0])]!
            var worst: Float = 0
            for one in golden.cases {
                let inputs = names.inputs.map { golden.input(one, $0) }
                let wanted = names.outputs.map { golden.output(one, $0) }
                let shapes = try layer.outputShapes(forInputShapes: inputs.map { $0.shape.map { NSNumber(value: $0) } })
                #expect(shapes == wanted.map { $0.shape.map { NSNumber(value: $0) } })
                let outputs = try wanted.map { try MLMultiArray(nothing: $0.shape) }
                try layer.evaluate(inputs: inputs.map { try MLMultiArray($0.floats, $0.shape) }, outputs: outputs)
                for (output, wanted) in zip(outputs, wanted) {
                    worst = max(worst, difference(output.floats, wanted.floats))
                }
            }
            return worst
        }

        @Test(arguments: classes.keys.sorted())
        func everyCaseOfEveryFile(_ name: String) throws {
            let golden = try Golden(name)
            #expect(!golden.cases.isEmpty)
            let layer = try Self.classes[name]!.init(parameters: golden.parameters)
            try layer.setWeightData(golden.entries().map(\.data))
            var table: MobileMoEEmbedding?
            if name.hasPrefix("head") {
                table = try MobileMoEEmbedding(parameters: golden.parameters)
                try table!.setWeightData(golden.entries("table").map(\.data))
            }
            #expect(try run(layer, name, golden) < 1e-5)
            withExtendedLifetime(table) {}
        }

        /// Within the kernel's limits of two products after each other.
        @Test(arguments: [(CPUOptions.Precision.int16, Float(2e-3)), (.int8, 2e-2)])
        func theFasterPrecisions(_ precision: CPUOptions.Precision, _ limit: Float) throws {
            LayerOptions.current.precision = precision
            defer { LayerOptions.current.precision = .exact }
            for name in ["attention", "experts"] {
                let golden = try Golden(name)
                let layer = try Self.classes[name]!.init(parameters: golden.parameters)
                try layer.setWeightData(golden.entries().map(\.data))
                let worst = try run(layer, name, golden)
                #expect(worst < limit && worst > 1e-6)
            }
        }

        @Test(
            .enabled(if: (try? GPU.shared()) != nil, "needs a GPU of Apple's"),
            arguments: ["experts", "experts-plain"])
        func expertsByMetal(_ name: String) throws {
            LayerOptions.current.expertsOnGPU = true
            defer { LayerOptions.current.expertsOnGPU = false }
            let golden = try Golden(name)
            let layer = try MobileMoEExperts(parameters: golden.parameters)
            try layer.setWeightData(golden.entries().map(\.data))
            #if os(Linux)
                SerialDevice.dispatched = []
            #endif
            #expect(try run(layer, name, golden) < 1e-5)
            #if os(Linux)
                #expect(SerialDevice.dispatched.contains("experts_gate_up_many"))
                #expect(SerialDevice.dispatched.contains("experts_down_one") == (name == "experts"))
            #endif
        }
    }
}
