#if os(Linux)
    import CoreML
    import Foundation
    import MobileMoE
    import MobileMoECoreML

    /// An exported package without Core ML, as tests/swift/test_core_ml_packages.py describes it.
    struct PackageCase: Decodable {
        struct Layer: Decodable {
            let `class`: String
            let parameters: [String: String]
            let inputs, outputs: [String]
        }

        let checkpoint, package: String
        let block, context: Int
        let allLogits: Bool
        let prompts: [[Int]]
        /// MLX's greedy continuation of each prompt.
        let greedy: [[Int]]
        /// Of a network of custom layers, in the order of the package; nil for a program.
        let layers: [Layer]?

        private static let folder = ProcessInfo.processInfo.environment["MOBILEMOE_PACKAGES"]
        static var areGiven: Bool { folder != nil }

        static func all() throws -> [PackageCase] {
            guard let folder else { return [] }
            let file = URL(fileURLWithPath: folder).appendingPathComponent("cases.json")
            return try JSONDecoder().decode([PackageCase].self, from: Data(contentsOf: file))
        }

        var url: URL { URL(fileURLWithPath: package) }

        func engine() throws -> CPUEngine {
            var options = CPUOptions(precision: .exact, threads: 1)
            options.context = context
            return try CPUEngine(folder: URL(fileURLWithPath: checkpoint), options: options)
        }
    }

    /// One call that a fake was given.
    struct PackageCall: Equatable {
        let function: String
        let position: Int
        let tokens: [Int]
    }

    final class CallLog: @unchecked Sendable {  // one call at a time
        var calls: [PackageCall] = []
        var beforeEach: () -> Void = {}
    }

    /// The functions of an ML Program, answered by the CPU engine. Its state holds the tokens that were
    /// written at each position: one that is missing, stale or at a wrong place changes the scores.
    final class FakeProgram: FakeModel {
        private let function: String
        private let package: PackageCase
        private let session: CPUSession
        private let log: CallLog
        private var fed: [Int] = []

        init(_ function: String, _ package: PackageCase, _ log: CallLog) throws {
            precondition(["prefill", "decode"].contains(function))
            (self.function, self.package, self.log) = (function, package, log)
            session = try package.engine().session()
        }

        func makeState() -> [String: MLMultiArray] {
            let cache = { try! MLMultiArray(shape: [1, 1, NSNumber(value: self.package.context), 1], dataType: .int32) }
            return ["key_cache": cache(), "value_cache": cache()]
        }

        func predict(
            _ inputs: [String: MLMultiArray], _ state: [String: MLMultiArray]
        ) throws -> [String: MLMultiArray] {
            log.beforeEach()
            let room = function == "decode" ? 1 : package.block
            let hasLength = function == "prefill" && !package.allLogits
            precondition(Set(inputs.keys) == Set(["tokens", "position"] + (hasLength ? ["length"] : [])))
            precondition(inputs["tokens"]!.sizes == [1, room] && inputs["tokens"]!.dataType == .int32)
            let tokens = inputs["tokens"]!.integers, position = inputs["position"]!.integers[0]
            precondition(position >= 0 && position + room <= package.context, "a block beyond the context")
            let count = hasLength ? inputs["length"]!.integers[0] : room
            precondition((1...room).contains(count))
            log.calls.append(PackageCall(function: function, position: position, tokens: Array(tokens.prefix(count))))

            var written: [[Int]] = []
            for name in ["key_cache", "value_cache"] {
                let rows = state[name]!.dataPointer.assumingMemoryBound(to: Int32.self)
                for (row, token) in tokens.enumerated() { rows[position + row] = Int32(token + 1) }
                written.append((0..<position + room).map { Int(rows[$0]) - 1 })
            }
            precondition(written[0] == written[1] && !written[0].contains(-1), "a row that nobody wrote")
            let known = min(zip(fed, written[0]).prefix { $0 == $1 }.count, position)
            try session.rewind(to: known)
            fed = written[0]
            let rows = package.allLogits ? room : 1
            // The rows of this call, or the counted ones alone, after all before it.
            let head = Array(written[0][known..<position]), own = Array(written[0][position..<position + count])
            let session = session
            if !head.isEmpty { _ = try wait { try await session.feed(head) } }
            let logits = try wait { try await session.feed(own, allLogits: true) }
            fed.removeLast(room - count)
            let vocabulary = logits.count / count
            let output = try MLMultiArray(
                shape: [1, NSNumber(value: rows), NSNumber(value: vocabulary)], dataType: .float16)
            let bits = output.dataPointer.assumingMemoryBound(to: Float16.self)
            for (index, value) in logits.suffix(rows * vocabulary).enumerated() { bits[index] = Float16(value) }
            return ["logits": output]
        }
    }

    /// A network of custom layers: the classes that it names, connected as it says.
    final class FakeNetwork: FakeModel {
        nonisolated(unsafe) private static let classes: [String: any MLCustomLayer.Type] = [
            "MobileMoEEmbedding": MobileMoEEmbedding.self, "MobileMoEAttention": MobileMoEAttention.self,
            "MobileMoEExperts": MobileMoEExperts.self, "MobileMoECacheRows": MobileMoECacheRows.self,
            "MobileMoEHead": MobileMoEHead.self,
        ]
        private let layers: [(layer: any MLCustomLayer, inputs: [String], outputs: [String])]
        private let log: CallLog

        init(_ package: PackageCase, _ log: CallLog) throws {
            self.log = log
            layers = try package.layers!.reversed().map { layer in
                let made = try Self.classes[layer.class]!.init(parameters: layer.parameters)
                try made.setWeightData([])
                return (made, layer.inputs, layer.outputs)
            }.reversed()
        }

        func makeState() -> [String: MLMultiArray] { [:] }

        func predict(
            _ inputs: [String: MLMultiArray], _ state: [String: MLMultiArray]
        ) throws -> [String: MLMultiArray] {
            log.beforeEach()
            var arrays = inputs
            for name in ["tokens", "position"] {  // integers arrive as floats
                arrays[name] = try MLMultiArray(inputs[name]!.integers.map(Float.init), inputs[name]!.sizes)
            }
            log.calls.append(
                PackageCall(
                    function: "main", position: inputs["position"]!.integers[0],
                    tokens: inputs["tokens"]!.integers))
            for (layer, from, to) in layers {
                let given = from.map { arrays[$0]! }
                let shapes = try layer.outputShapes(forInputShapes: given.map(\.shape))
                let results = try shapes.map { try MLMultiArray(nothing: $0.map(\.intValue)) }
                try layer.evaluate(inputs: given, outputs: results)
                for (name, result) in zip(to, results) { arrays[name] = result }
            }
            return arrays.filter { ["logits", "new_keys", "new_values"].contains($0.key) }
        }
    }

    extension MLMultiArray {
        var integers: [Int] {
            let first = dataPointer.assumingMemoryBound(to: Int32.self)
            return (0..<count).map { Int(first[$0]) }
        }
    }

    /// Blocks until `work`, which needs none of the caller's threads, is done.
    private func wait<Value: Sendable>(_ work: @escaping @Sendable () async throws -> Value) throws -> Value {
        let done = DispatchSemaphore(value: 0)
        let box = Box<Value>()
        Task {
            do { box.result = .success(try await work()) } catch { box.result = .failure(error) }
            done.signal()
        }
        done.wait()
        return try box.result!.get()
    }

    private final class Box<Value>: @unchecked Sendable { var result: Result<Value, any Error>? }
#endif
