#if canImport(CoreML)
    import CoreML
    import Foundation
    import MobileMoE

    func features(_ arrays: [String: MLMultiArray]) throws -> MLDictionaryFeatureProvider {
        try MLDictionaryFeatureProvider(dictionary: arrays.mapValues { MLFeatureValue(multiArray: $0) })
    }

    extension MLFeatureProvider {
        func array(_ name: String) throws -> MLMultiArray {
            guard let array = featureValue(for: name)?.multiArrayValue else {
                throw MobileMoEError(.checkpoint, "The package has no output '\(name)'. Export it anew.")
            }
            return array
        }
    }

    extension MLMultiArray {
        convenience init(integers: [Int], shape: [Int]) throws {
            try self.init(shape: shape.map { NSNumber(value: $0) }, dataType: .int32)
            let values = dataPointer.assumingMemoryBound(to: Int32.self)
            for (index, integer) in integers.enumerated() { values[index] = Int32(integer) }
        }

        /// Of float32.
        convenience init(zeros shape: [Int]) throws {
            try self.init(shape: shape.map { NSNumber(value: $0) }, dataType: .float32)
            memset(dataPointer, 0, count * 4)
        }

        /// The strides of the last sizes, which must be `sizes`; those before must be 1.
        func lastStrides(_ sizes: [Int], _ name: String) throws -> [Int] {
            let shape = shape.map(\.intValue)
            guard shape.suffix(sizes.count) == sizes[...],
                shape.dropLast(sizes.count).allSatisfy({ $0 == 1 })
            else {
                throw MobileMoEError(
                    .kernel, "Core ML gave \(name) of the shape \(shape) instead of \(sizes).")
            }
            return strides.suffix(sizes.count).map(\.intValue)
        }

        /// The last counted row of scores [rows, vocabulary]: of `tokens` rows, or of the only one.
        func lastLogits(tokens: Int, vocabulary: Int) throws -> [Float] {
            let rows = shape.count > 1 ? shape[shape.count - 2].intValue : 1
            let strides = try lastStrides(shape.count > 1 ? [rows, vocabulary] : [vocabulary], "logits")
            guard rows == 1 || rows >= tokens else {
                throw MobileMoEError(.kernel, "Core ML gave \(rows) rows of logits for \(tokens) tokens.")
            }
            let first = rows == 1 ? 0 : (tokens - 1) * strides[0], step = strides.last!
            let logits: [Float] = try withUnsafeBytes { bytes in
                switch dataType {
                case .float32:
                    let values = bytes.assumingMemoryBound(to: Float.self)
                    return (0..<vocabulary).map { values[first + $0 * step] }
                case .float16:
                    // Not Swift's Float16, which Intel Macs lack.
                    let values = bytes.assumingMemoryBound(to: UInt16.self)
                    return (0..<vocabulary).map { float(halfBits: values[first + $0 * step]) }
                default:
                    throw MobileMoEError(.kernel, "Core ML gave logits that are not floating-point.")
                }
            }
            guard logits.allSatisfy(\.isFinite) else {
                throw MobileMoEError(
                    .kernel,
                    "Core ML's logits are not finite (NaN or infinite). Try other compute units.")
            }
            return logits
        }
    }

    /// The value of an IEEE 754 binary16, subnormal, infinite and not-a-number ones included.
    func float(halfBits half: UInt16) -> Float {
        let sign = UInt32(half & 0x8000) << 16
        let magnitude = UInt32(half & 0x7FFF)
        // The exponent moves by 112: as a product, so that subnormal ones come right too.
        let shifted = Float(bitPattern: magnitude << 13) * 0x1p112
        let bits = magnitude >= 0x7C00 ? 0x7F80_0000 | magnitude << 13 : shifted.bitPattern
        return Float(bitPattern: sign | bits)
    }
#endif
