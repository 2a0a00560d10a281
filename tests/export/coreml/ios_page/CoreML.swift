// Stands in for Core ML: the declarations that docs/ios.md uses, and a made-up model behind them.
//
// The model's state holds the tokens that were fed to it, by position. The score of the next token is
// highest for the sum of token * (position + 1) over all tokens so far, modulo the vocabulary: a
// token that is missing, twice there or at a wrong place changes every answer.

import Foundation

public enum MLComputeUnits { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }

public class MLModelConfiguration {
    public init() {}
    public var functionName: String?
    public var computeUnits: MLComputeUnits = .all
}

public class MLMultiArray {
    var tokens: [Int: Int] = [:]
    public func transfer(to destination: MLMultiArray) { destination.tokens = tokens }
}

public final class MLState: @unchecked Sendable {
    let rows = MLMultiArray()
    public func withMultiArray<R>(for stateName: String, _ body: (MLMultiArray) throws -> R) rethrows -> R {
        try body(rows)
    }
}

public struct MLShapedArray<Scalar> {
    public let scalars: [Scalar]
    public let shape: [Int]
    public init<S: Sequence>(scalars: S, shape: [Int]) where S.Element == Scalar {
        self.scalars = Array(scalars)
        self.shape = shape
        precondition(self.scalars.count == shape.reduce(1, *))
    }
}

public final class MLFeatureValue: @unchecked Sendable {
    let value: Any
    public convenience init<Scalar>(shapedArray: MLShapedArray<Scalar>) { self.init(any: shapedArray) }
    init(any: Any) { value = any }
    public func shapedArrayValue<Scalar>(of type: Scalar.Type) -> MLShapedArray<Scalar>? {
        value as? MLShapedArray<Scalar>
    }
}

public protocol MLFeatureProvider: Sendable {
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    let values: [String: MLFeatureValue]
    public init(dictionary: [String: Any]) throws { values = dictionary.mapValues { $0 as! MLFeatureValue } }
    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

public struct Call: Codable, Sendable { public let function: String, tokens: [Int], position: Int, length: Int? }

public final class MLModel: @unchecked Sendable {
    nonisolated(unsafe) public static var calls: [Call] = []
    nonisolated(unsafe) public static var (block, context, vocabulary, allLogits) = (0, 0, 0, false)
    nonisolated(unsafe) public static var isPredicting = false
    nonisolated(unsafe) public static var isHeld = false  // a prediction goes on when this is false
    let function: String
    init(_ function: String) { self.function = function }

    public class func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        precondition(url.pathExtension == "mlmodelc" && FileManager.default.fileExists(atPath: url.path))
        return MLModel(configuration.functionName!)
    }

    public func makeState() -> MLState { MLState() }

    public func prediction(from input: MLFeatureProvider, using state: MLState) async throws -> MLFeatureProvider {
        precondition(!MLModel.isPredicting, "predictions on one state overlap")
        MLModel.isPredicting = true
        defer { MLModel.isPredicting = false }
        while MLModel.isHeld { try await Task.sleep(nanoseconds: 1_000_000) }
        func integers(_ name: String) -> MLShapedArray<Int32>? {
            input.featureValue(for: name)?.shapedArrayValue(of: Int32.self)
        }
        let tokens = integers("tokens")!, position = Int(integers("position")!.scalars[0])
        let length = integers("length").map { Int($0.scalars[0]) }
        let count = function == "decode" ? 1 : MLModel.block
        precondition(tokens.shape == [1, count] && position + count <= MLModel.context)
        precondition((length != nil) == (function == "prefill" && !MLModel.allLogits))
        MLModel.calls.append(
            Call(function: function, tokens: tokens.scalars.map { Int($0) }, position: position, length: length))
        for (row, token) in tokens.scalars.enumerated() { state.rows.tokens[position + row] = Int(token) }
        let last = (length ?? count) - 1
        let rows = length == nil ? Array(0..<count) : [last]
        var scores: [Float16] = []
        for row in rows {
            var sum = 0
            for index in 0...(position + row) { sum += state.rows.tokens[index]! * (index + 1) }
            scores += (0..<MLModel.vocabulary).map { $0 == sum % MLModel.vocabulary ? 1 : 0 }
        }
        let logits = MLShapedArray(scalars: scores, shape: [1, rows.count, MLModel.vocabulary])
        return try MLDictionaryFeatureProvider(dictionary: ["logits": MLFeatureValue(shapedArray: logits)])
    }
}
