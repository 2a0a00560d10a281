import MobileMoE

/// An array that Core ML lends for one call: where it is and how it lies there.
public struct LayerArray {
    let start: UnsafeMutableRawPointer
    let shape: [Int]
    let strides: [Int]
    let isFloat32: Bool

    public init(start: UnsafeMutableRawPointer, shape: [Int], strides: [Int], isFloat32: Bool) {
        self.start = start
        self.shape = shape
        self.strides = strides
        self.isFloat32 = isFloat32
    }

    /// Its last `count` sizes; those before must be 1 (coreml/README.md, section 2).
    func lastSizes(_ count: Int, _ name: String, _ parameters: LayerParameters) throws -> [Int] {
        try MobileMoELayers.lastSizes(count, of: shape, name, parameters)
    }

    /// Hands `body` the values, dense, after checking type and shape.
    func read<Result>(
        _ sizes: [Int], _ name: String, _ parameters: LayerParameters,
        _ body: (UnsafePointer<Float>) throws -> Result
    ) throws -> Result {
        try check(sizes, name, parameters)
        let first = start.assumingMemoryBound(to: Float.self)
        if isDense { return try body(UnsafePointer(first)) }
        var values = [Float](repeating: 0, count: sizes.reduce(1, *))
        forEachPlace { dense, place in values[dense] = first[place] }
        return try values.withUnsafeBufferPointer { try body($0.baseAddress!) }
    }

    /// Hands `body` room for all values, dense, and puts them where they belong.
    func write(
        _ sizes: [Int], _ name: String, _ parameters: LayerParameters,
        _ body: (UnsafeMutablePointer<Float>) throws -> Void
    ) throws {
        try check(sizes, name, parameters)
        let first = start.assumingMemoryBound(to: Float.self)
        if isDense { return try body(first) }
        var values = [Float](repeating: 0, count: sizes.reduce(1, *))
        try values.withUnsafeMutableBufferPointer { try body($0.baseAddress!) }
        forEachPlace { dense, place in first[place] = values[dense] }
    }

    private func check(_ sizes: [Int], _ name: String, _ parameters: LayerParameters) throws {
        guard isFloat32 else {
            throw parameters.error(
                "its array '\(name)' is not of float32. Load the model with computeUnits .cpuOnly.")
        }
        guard strides.count == shape.count,
            try lastSizes(sizes.count, name, parameters) == sizes
        else {
            throw parameters.error("its array '\(name)' has the shape \(shape) instead of \(sizes).")
        }
    }

    private var isDense: Bool {
        var step = 1
        for (size, stride) in zip(shape, strides).reversed() {
            if size != 1, stride != step { return false }
            step *= size
        }
        return true
    }

    /// Every value's number in a dense array and its place in this one.
    private func forEachPlace(_ body: (Int, Int) -> Void) {
        let count = shape.reduce(1, *)
        var index = [Int](repeating: 0, count: shape.count)
        var place = 0
        for dense in 0..<count {
            body(dense, place)
            var axis = shape.count - 1
            while axis >= 0 {
                index[axis] += 1
                place += strides[axis]
                if index[axis] < shape[axis] { break }
                place -= index[axis] * strides[axis]
                index[axis] = 0
                axis -= 1
            }
        }
    }
}

func lastSizes(
    _ count: Int, of shape: [Int], _ name: String, _ parameters: LayerParameters
) throws -> [Int] {
    guard shape.count >= count, shape.dropLast(count).allSatisfy({ $0 == 1 }),
        shape.allSatisfy({ $0 > 0 })
    else {
        throw parameters.error("its array '\(name)' has the shape \(shape), which has not \(count) sizes.")
    }
    return Array(shape.suffix(count))
}
