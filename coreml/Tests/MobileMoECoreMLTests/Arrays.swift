import CoreML
import Foundation

extension MLMultiArray {
    convenience init(_ values: [Float], _ shape: [Int]) throws {
        try self.init(shape: shape.map { NSNumber(value: $0) }, dataType: .float32)
        precondition(values.count == count)
        values.withUnsafeBytes { dataPointer.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    }

    convenience init(nothing shape: [Int]) throws {
        try self.init([Float](repeating: .nan, count: shape.reduce(1, *)), shape)
    }

    /// Of a dense array.
    var floats: [Float] {
        let first = dataPointer.assumingMemoryBound(to: Float.self)
        return (0..<count).map { first[$0] }
    }

    var sizes: [Int] { shape.map(\.intValue) }
}
