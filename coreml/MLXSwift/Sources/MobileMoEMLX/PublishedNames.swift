import MLX

/// Tensors under published names and forms to those of `MobileMoEMLXModel`; its own names stay.
///
/// Published INT4 has two codes a byte, low nibble first, in two's complement: -8 ... 7. MLX's has
/// eight in a 32-bit word, low nibble first, from 0 on, as code x scale + bias. Adding 8 to a
/// two's-complement nibble is flipping its top bit, and the bias is -8 x scale: exact.
func publishedToMLX(_ weights: [String: MLXArray]) -> [String: MLXArray] {
    var result: [String: MLXArray] = [:]
    for (name, tensor) in weights {
        if name.hasSuffix(".experts.gate_up_proj") || name.hasSuffix(".experts.down_proj") {
            result[name + ".weight"] = tensor
        } else if let module = withoutEnding(name, "_qweight") {
            result[module + "_proj.weight"] = codes(tensor)
        } else if let module = withoutEnding(name, ".qweight") {
            result[module + ".weight"] = codes(tensor)
        } else if let module = withoutEnding(name, ".weight_scale") {
            result[module + ".scales"] = tensor
            result[module + ".biases"] = biases(tensor)
        } else if name.hasSuffix(".experts.gate_up_scale") || name.hasSuffix(".experts.down_scale"),
            let module = withoutEnding(name, "_scale")
        {
            result[module + "_proj.scales"] = tensor
            result[module + "_proj.biases"] = biases(tensor)
        } else {
            result[name] = tensor
        }
    }
    return result
}

private func codes(_ bytes: MLXArray) -> MLXArray {
    (bytes ^ MLXArray(0x88 as UInt8)).view(dtype: .uint32)
}

private func biases(_ scales: MLXArray) -> MLXArray {
    scales * MLXArray(-8).asType(scales.dtype)
}

private func withoutEnding(_ name: String, _ ending: String) -> String? {
    name.hasSuffix(ending) ? String(name.dropLast(ending.count)) : nil
}
