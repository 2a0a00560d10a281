import MLX
import MLXLMCommon
import MLXNN

/// One linear layer of every routed expert: rows times the matrix of the expert of each index.
///
/// mlx-swift-lm's `SwitchLinear` holds [experts, out, in] with groups along *in*. Published experts
/// are [experts, in, out] with groups along *out*, and stay so: turned, their INT4 would have to be
/// rounded again.
public class ExpertProduct: Module {
    /// x [..., rows, in] with the expert of each of `indices` [...] -> [..., rows, out].
    func callAsFunction(_ x: MLXArray, _ indices: MLXArray, sorted: Bool) -> MLXArray {
        fatalError("ExpertProduct is what its subclasses have in common")
    }

    /// The matrices [experts, in, out] in float32.
    var matrices: MLXArray { fatalError("ExpertProduct is what its subclasses have in common") }
}

/// Experts in a float type: weight [experts, in, out].
public final class ExpertLinear: ExpertProduct, Quantizable {
    @ParameterInfo(key: "weight") var weight: MLXArray

    init(experts: Int, inputs: Int, outputs: Int) {
        _weight.wrappedValue = MLXArray.zeros([experts, inputs, outputs])
    }

    init(weight: MLXArray) { _weight.wrappedValue = weight }

    override func callAsFunction(_ x: MLXArray, _ indices: MLXArray, sorted: Bool) -> MLXArray {
        gatherMM(x, weight.asType(x.dtype), rhsIndices: indices, sortedIndices: sorted)
    }

    override var matrices: MLXArray { weight.asType(.float32) }

    public func toQuantized(groupSize: Int, bits: Int, mode: QuantizationMode) -> Module {
        QuantizedExpertLinear(self, groupSize: groupSize, bits: bits, mode: mode)
    }
}

/// Experts in MLX's quantized form, with groups along *out*: weight [experts, in, out x bits / 32],
/// scales and biases [experts, in, out / groupSize].
public final class QuantizedExpertLinear: ExpertProduct, Quantized {
    public let groupSize: Int
    public let bits: Int
    public let mode: QuantizationMode
    @ParameterInfo(key: "weight") var weight: MLXArray
    @ParameterInfo(key: "scales") var scales: MLXArray
    @ParameterInfo(key: "biases") var biases: MLXArray?

    init(_ linear: ExpertLinear, groupSize: Int, bits: Int, mode: QuantizationMode) {
        (self.groupSize, self.bits, self.mode) = (groupSize, bits, mode)
        let (weight, scales, biases) = quantized(
            linear.weight, groupSize: groupSize, bits: bits, mode: mode)
        _weight.wrappedValue = weight
        _scales.wrappedValue = scales
        _biases.wrappedValue = biases
        super.init()
        freeze()
    }

    override func callAsFunction(_ x: MLXArray, _ indices: MLXArray, sorted: Bool) -> MLXArray {
        // The kernel wants scales of x's type; float16 ones in float32 are the same numbers.
        gatherQuantizedMM(
            x, weight, scales: scales.asType(x.dtype), biases: biases?.asType(x.dtype),
            rhsIndices: indices, transpose: false, groupSize: groupSize, bits: bits, mode: mode,
            sortedIndices: sorted)
    }

    override var matrices: MLXArray {
        dequantized(
            weight, scales: scales.asType(.float32), biases: biases?.asType(.float32),
            groupSize: groupSize, bits: bits, mode: mode)
    }
}

/// The routed experts of a layer: down(silu(gate(x)) * up(x)) of each that was chosen.
public final class Experts: Module {
    @ModuleInfo(key: "gate_up_proj") var gateUp: ExpertProduct
    @ModuleInfo(key: "down_proj") var down: ExpertProduct

    /// Below so many (token, expert) pairs sorting costs more than it saves: mlx-lm's threshold.
    private static let sortsFrom = 64

    init(_ configuration: MobileMoEConfiguration) {
        let (hidden, width) = (configuration.hiddenSize, configuration.expertWidth)
        _gateUp.wrappedValue = ExpertLinear(
            experts: configuration.experts, inputs: hidden, outputs: 2 * width)
        _down.wrappedValue = ExpertLinear(
            experts: configuration.experts, inputs: width, outputs: hidden)
    }

    /// x [tokens, hidden], indices [tokens, chosen] -> [tokens, chosen, hidden].
    func callAsFunction(_ x: MLXArray, _ indices: MLXArray) -> MLXArray {
        let rows = expandedDimensions(x, axes: [-2, -3])
        guard indices.size >= Self.sortsFrom else {
            return swiglu(rows, indices, sorted: false).squeezed(axis: -2)
        }
        let (sortedRows, sortedIndices, order) = gatherSort(x: rows, indices: indices)
        let results = swiglu(sortedRows, sortedIndices, sorted: true)
        return scatterUnsort(x: results, invOrder: order, shape: indices.shape).squeezed(axis: -2)
    }

    private func swiglu(_ x: MLXArray, _ indices: MLXArray, sorted: Bool) -> MLXArray {
        let parts = split(gateUp(x, indices, sorted: sorted), parts: 2, axis: -1)
        return down(silu(parts[0]) * parts[1], indices, sorted: sorted)
    }
}
