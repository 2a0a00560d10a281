import Foundation
import MobileMoE

/// What a custom layer does, without Core ML: the five classes of coreml/README.md.
public protocol PortableLayer: AnyObject {
    init(parameters: [String: Any]) throws
    /// The entries of the model's file, in its order; empty where a side file has them.
    func setWeightData(_ weights: [Data]) throws
    func outputShapes(forInputShapes shapes: [[Int]]) throws -> [[Int]]
    func evaluate(inputs: [LayerArray], outputs: [LayerArray]) throws
}

/// What every class needs of the arrays that it is handed.
struct LayerCall {
    let inputs: [LayerArray]
    let outputs: [LayerArray]
    let parameters: LayerParameters

    init(
        _ inputs: [LayerArray], _ outputs: [LayerArray], _ counts: (inputs: Int, outputs: Int),
        _ parameters: LayerParameters
    ) throws {
        guard inputs.count == counts.inputs, outputs.count == counts.outputs else {
            throw parameters.error(
                "it was called with \(inputs.count) inputs and \(outputs.count) outputs instead of "
                    + "\(counts.inputs) and \(counts.outputs).")
        }
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
    }

    func read<Result>(
        _ index: Int, _ sizes: [Int], _ name: String,
        _ body: (UnsafePointer<Float>) throws -> Result
    ) throws -> Result {
        try inputs[index].read(sizes, name, parameters, body)
    }

    func write(
        _ index: Int, _ sizes: [Int], _ name: String,
        _ body: (UnsafeMutablePointer<Float>) throws -> Void
    ) throws {
        try outputs[index].write(sizes, name, parameters, body)
    }
}

/// The shapes that a layer is asked about, counted.
func shapes(_ shapes: [[Int]], _ count: Int, _ parameters: LayerParameters) throws -> [[Int]] {
    guard shapes.count == count else {
        throw parameters.error("it has \(count) inputs and was asked about \(shapes.count).")
    }
    return shapes
}

/// A float that stands for a whole number, as Core ML hands over integers; nil for any other.
func wholeNumber(_ value: Float) -> Int? { Int(exactly: value) }
