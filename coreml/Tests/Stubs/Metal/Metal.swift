// Stands in for Metal on Linux, for tests alone: the declarations that MobileMoECoreML uses, with
// Apple's signatures and availability. Each names its page below
// https://developer.apple.com/documentation/metal/. What is behind them is in SerialDevice.swift.

import Foundation

/// mtlsize
@available(macOS 10.11, iOS 8.0, *)
public struct MTLSize: Sendable {
    public var width, height, depth: Int
    public init(width: Int, height: Int, depth: Int) {
        (self.width, self.height, self.depth) = (width, height, depth)
    }
}

/// mtlgpufamily
@available(macOS 10.15, iOS 13.0, tvOS 13.0, *)
public enum MTLGPUFamily: Int, Sendable {
    case apple7 = 1007
}

/// mtlresourceoptions
@available(macOS 10.11, iOS 8.0, *)
public struct MTLResourceOptions: OptionSet, Sendable {
    public let rawValue: UInt
    public init(rawValue: UInt) { self.rawValue = rawValue }
    public static let storageModeShared = MTLResourceOptions([])
}

/// mtlmathmode
@available(macOS 15.0, iOS 18.0, tvOS 18.0, visionOS 2.0, *)
public enum MTLMathMode: Int, Sendable {
    case safe = 0
    case relaxed = 1
    case fast = 2
}

/// mtlmathfloatingpointfunctions
@available(macOS 15.0, iOS 18.0, tvOS 18.0, visionOS 2.0, *)
public enum MTLMathFloatingPointFunctions: Int, Sendable {
    case fast = 0
    case precise = 1
}

/// mtlcompileoptions
@available(macOS 10.11, iOS 8.0, *)
open class MTLCompileOptions: NSObject {
    /// mtlcompileoptions/mathmode
    @available(macOS 15.0, iOS 18.0, tvOS 18.0, visionOS 2.0, *)
    open var mathMode = MTLMathMode.fast
    /// mtlcompileoptions/mathfloatingpointfunctions
    @available(macOS 15.0, iOS 18.0, tvOS 18.0, visionOS 2.0, *)
    open var mathFloatingPointFunctions = MTLMathFloatingPointFunctions.fast
}

/// mtlcreatesystemdefaultdevice()
@available(macOS 10.11, iOS 8.0, *)
public func MTLCreateSystemDefaultDevice() -> (any MTLDevice)? { SerialDevice.systemDefault }

/// mtldevice
@available(macOS 10.11, iOS 8.0, *)
public protocol MTLDevice: NSObjectProtocol, Sendable {
    /// mtldevice/name
    var name: String { get }
    /// mtldevice/supportsfamily(_:)
    func supportsFamily(_ gpuFamily: MTLGPUFamily) -> Bool
    /// mtldevice/makecommandqueue()
    func makeCommandQueue() -> (any MTLCommandQueue)?
    /// mtldevice/makelibrary(source:options:)
    func makeLibrary(source: String, options: MTLCompileOptions?) throws -> any MTLLibrary
    /// mtldevice/makecomputepipelinestate(function:)
    func makeComputePipelineState(function: any MTLFunction) throws -> any MTLComputePipelineState
    /// mtldevice/makebuffer(length:options:)
    func makeBuffer(length: Int, options: MTLResourceOptions) -> (any MTLBuffer)?
    /// mtldevice/makebuffer(bytes:length:options:)
    func makeBuffer(bytes: UnsafeRawPointer, length: Int, options: MTLResourceOptions) -> (any MTLBuffer)?
    /// mtldevice/makebuffer(bytesnocopy:length:options:deallocator:)
    func makeBuffer(
        bytesNoCopy pointer: UnsafeMutableRawPointer, length: Int, options: MTLResourceOptions,
        deallocator: ((UnsafeMutableRawPointer, Int) -> Void)?
    ) -> (any MTLBuffer)?
}

/// mtllibrary
@available(macOS 10.11, iOS 8.0, *)
public protocol MTLLibrary: NSObjectProtocol {
    /// mtllibrary/makefunction(name:)
    func makeFunction(name functionName: String) -> (any MTLFunction)?
}

/// mtlfunction
@available(macOS 10.11, iOS 8.0, *)
public protocol MTLFunction: NSObjectProtocol {}

/// mtlcomputepipelinestate
@available(macOS 10.11, iOS 8.0, *)
public protocol MTLComputePipelineState: NSObjectProtocol {
    /// mtlcomputepipelinestate/maxtotalthreadsperthreadgroup
    var maxTotalThreadsPerThreadgroup: Int { get }
}

/// mtlbuffer
@available(macOS 10.11, iOS 8.0, *)
public protocol MTLBuffer: NSObjectProtocol {
    /// mtlbuffer/length
    var length: Int { get }
    /// mtlbuffer/contents()
    func contents() -> UnsafeMutableRawPointer
}

/// mtltexture
@available(macOS 10.11, iOS 8.0, *)
public protocol MTLTexture: NSObjectProtocol {}

/// mtlcommandqueue
@available(macOS 10.11, iOS 8.0, *)
public protocol MTLCommandQueue: NSObjectProtocol {
    /// mtlcommandqueue/makecommandbuffer()
    func makeCommandBuffer() -> (any MTLCommandBuffer)?
}

/// mtlcommandbuffer
@available(macOS 10.11, iOS 8.0, *)
public protocol MTLCommandBuffer: NSObjectProtocol {
    /// mtlcommandbuffer/error
    var error: (any Error)? { get }
    /// mtlcommandbuffer/makecomputecommandencoder()
    func makeComputeCommandEncoder() -> (any MTLComputeCommandEncoder)?
    /// mtlcommandbuffer/commit()
    func commit()
    /// mtlcommandbuffer/waituntilcompleted()
    func waitUntilCompleted()
}

/// mtlcomputecommandencoder
@available(macOS 10.11, iOS 8.0, *)
public protocol MTLComputeCommandEncoder: NSObjectProtocol {
    /// mtlcomputecommandencoder/setcomputepipelinestate(_:)
    func setComputePipelineState(_ state: any MTLComputePipelineState)
    /// mtlcomputecommandencoder/setbuffer(_:offset:index:)
    func setBuffer(_ buffer: (any MTLBuffer)?, offset: Int, index: Int)
    /// mtlcomputecommandencoder/setbytes(_:length:index:)
    func setBytes(_ bytes: UnsafeRawPointer, length: Int, index: Int)
    /// mtlcomputecommandencoder/setthreadgroupmemorylength(_:index:)
    func setThreadgroupMemoryLength(_ length: Int, index: Int)
    /// mtlcomputecommandencoder/dispatchthreadgroups(_:threadsperthreadgroup:)
    func dispatchThreadgroups(_ threadgroupsPerGrid: MTLSize, threadsPerThreadgroup: MTLSize)
    /// mtlcommandencoder/endencoding()
    func endEncoding()
}
