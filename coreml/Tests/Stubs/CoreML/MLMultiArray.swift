// Stands in for Core ML on Linux, for tests alone: the declarations that MobileMoECoreML uses, with
// Apple's signatures and availability, and as much behind them as the tests run. Each declaration
// names its page below https://developer.apple.com/documentation/coreml/.

import Foundation

/// mlmultiarraydatatype
@available(macOS 10.13, iOS 11.0, tvOS 11.0, watchOS 4.0, *)
public enum MLMultiArrayDataType: Int, Sendable {
    case double = 0x10040
    case float32 = 0x10020
    case float16 = 0x10010
    case int32 = 0x20020

    var bytes: Int { (rawValue & 0xFFFF) / 8 }
}

/// mlmultiarray
@available(macOS 10.13, iOS 11.0, tvOS 11.0, watchOS 4.0, *)
open class MLMultiArray: NSObject {
    /// mlmultiarray/datatype
    public let dataType: MLMultiArrayDataType
    /// mlmultiarray/shape
    public let shape: [NSNumber]
    /// mlmultiarray/strides
    public let strides: [NSNumber]
    /// mlmultiarray/datapointer
    public let dataPointer: UnsafeMutableRawPointer
    private let deallocator: ((UnsafeMutableRawPointer) -> Void)?
    private let bytes: Int

    /// mlmultiarray/init(shape:datatype:)
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {
        self.shape = shape
        self.dataType = dataType
        var strides: [NSNumber] = [], step = 1
        for size in shape.reversed() {
            strides.insert(NSNumber(value: step), at: 0)
            step *= size.intValue
        }
        self.strides = strides
        bytes = step * dataType.bytes
        dataPointer = .allocate(byteCount: max(bytes, 1), alignment: 64)
        dataPointer.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
        deallocator = { $0.deallocate() }
    }

    /// mlmultiarray/init(datapointer:shape:datatype:strides:deallocator:)
    public init(
        dataPointer: UnsafeMutableRawPointer, shape: [NSNumber], dataType: MLMultiArrayDataType,
        strides: [NSNumber], deallocator: ((UnsafeMutableRawPointer) -> Void)? = nil
    ) throws {
        self.shape = shape
        self.strides = strides
        self.dataType = dataType
        self.dataPointer = dataPointer
        self.deallocator = deallocator
        let last = zip(shape, strides).reduce(0) { $0 + ($1.0.intValue - 1) * $1.1.intValue }
        bytes = (last + 1) * dataType.bytes
    }

    deinit { deallocator?(dataPointer) }

    /// mlmultiarray/count
    public var count: Int { shape.reduce(1) { $0 * $1.intValue } }

    /// mlmultiarray/withunsafebytes(_:)
    @available(macOS 12.3, iOS 15.4, tvOS 15.4, watchOS 8.5, *)
    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try body(UnsafeRawBufferPointer(start: dataPointer, count: bytes))
    }

    /// mlmultiarray/withunsafemutablebytes(_:)
    @available(macOS 12.3, iOS 15.4, tvOS 15.4, watchOS 8.5, *)
    public func withUnsafeMutableBytes<R>(
        _ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R
    ) rethrows -> R {
        try body(
            UnsafeMutableRawBufferPointer(start: dataPointer, count: bytes), strides.map(\.intValue))
    }

    /// mlmultiarray/transfer(to:)
    @available(macOS 15.0, iOS 18.0, tvOS 18.0, watchOS 11.0, *)
    open func transfer(to destinationMultiArray: MLMultiArray) {
        precondition(shape == destinationMultiArray.shape && strides == destinationMultiArray.strides)
        precondition(dataType == destinationMultiArray.dataType)
        destinationMultiArray.dataPointer.copyMemory(from: dataPointer, byteCount: bytes)
    }
}
