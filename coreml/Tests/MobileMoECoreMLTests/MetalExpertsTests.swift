import CoreML
import Foundation
import Metal
import MobileMoE
import MobileMoELayers
import Testing

@testable import MobileMoECoreML

extension LayerTests {
    /// The Metal kernels, on Linux as C++, against the CPU kernel in its exact precision.
    @Suite(.enabled(if: (try? GPU.shared()) != nil, "needs a GPU of Apple's"))
    struct MetalExpertsTests {
        /// Experts' weights and one answer of both, [count, hidden].
        private func both(
            _ experts: RandomExperts, _ count: Int, seed: UInt64, residual: [Float]? = nil
        ) throws -> (cpu: [Float], gpu: [Float]) {
            var random = Seeded(seed)
            let weights = experts.weights(&random)
            let shape = [count, experts.hidden]
            let residual = try MLMultiArray(residual ?? random.floats(count * experts.hidden), shape)
            let answers = try [false, true].map { onGPU in
                LayerOptions.current.expertsOnGPU = onGPU
                defer { LayerOptions.current.expertsOnGPU = false }
                let layer = try MobileMoEExperts(parameters: experts.parameters)
                try layer.setWeightData(weights)
                let out = try MLMultiArray(nothing: shape)
                try layer.evaluate(inputs: [residual], outputs: [out])
                return out.floats
            }
            return (answers[0], answers[1])
        }

        @Test(arguments: [
            (RandomExperts(hidden: 32, width: 32, shared: 32, experts: 1, perToken: 1), [1, 2]),
            (RandomExperts(hidden: 96, width: 160, shared: 32, experts: 5, perToken: 2), [1, 7]),
            (RandomExperts(hidden: 288, width: 32, shared: 416, experts: 33, perToken: 7), [1, 5]),
            (RandomExperts(hidden: 64, width: 64, shared: 64, experts: 70, perToken: 40, normalize: false), [1, 3]),
            (RandomExperts(hidden: 32, width: 64, shared: 96, experts: 3, perToken: 3), [33]),
            (RandomExperts(hidden: 32, width: 32, shared: 32, experts: 40, perToken: 1), [1, 2]),
            (RandomExperts(hidden: 32, width: 32, shared: 32, experts: 40, perToken: 2), [1]),
            (RandomExperts(hidden: 160, width: 96, shared: 224, experts: 2, perToken: 1), [65]),
            (RandomExperts(hidden: 32, width: 32, shared: 32, experts: 1024, perToken: 64), [2]),
        ])
        func allShapes(_ experts: RandomExperts, _ counts: [Int]) throws {
            for count in counts {
                let (cpu, gpu) = try both(experts, count, seed: UInt64(experts.hidden + count))
                #expect(difference(gpu, cpu) < 2e-6, "\(count) tokens")
            }
        }

        @Test func aTokenThatIsNotANumberSpoilsNoOther() throws {
            let experts = RandomExperts(hidden: 64, width: 32, shared: 32, experts: 6, perToken: 2)
            var random = Seeded(7)
            var residual = random.floats(3 * 64)
            for i in 64..<128 { residual[i] = .nan }
            let (cpu, gpu) = try both(experts, 3, seed: 8, residual: residual)
            #expect(gpu[64..<128].allSatisfy { !$0.isFinite })
            for rows in [0..<64, 128..<192] { #expect(difference(Array(gpu[rows]), Array(cpu[rows])) < 2e-6) }
        }

        #if os(Linux)
            @Test func withoutAGPUItSaysWhatToDo() throws {
                let families = SerialDevice.families
                SerialDevice.families = []
                defer { SerialDevice.families = families }
                #expect(throws: MobileMoEError.self) { try GPU() }
            }
        #endif
    }
}
