import Foundation
import MetalShim

/// A device that runs the kernels of experts.metal, compiled as C++, one thread after the other, and
/// insists on the rules of Metal that a GPU may punish without a word.
public final class SerialDevice: NSObject, MTLDevice, @unchecked Sendable {
    /// Nil: as on a machine without a GPU.
    nonisolated(unsafe) public static var systemDefault = metal_shim_runs() ? SerialDevice() : nil
    nonisolated(unsafe) public static var families: Set<MTLGPUFamily> = [.apple7]
    /// Kernels that ran, in order.
    nonisolated(unsafe) public static var dispatched: [String] = []
    /// Buffers of others' bytes that were made without a copy.
    nonisolated(unsafe) public static var uncopied = 0

    public var name: String { "one thread after the other" }
    public func supportsFamily(_ gpuFamily: MTLGPUFamily) -> Bool { Self.families.contains(gpuFamily) }
    public func makeCommandQueue() -> (any MTLCommandQueue)? { Queue() }
    public func makeLibrary(source: String, options: MTLCompileOptions?) throws -> any MTLLibrary {
        try Library(source)
    }
    public func makeComputePipelineState(
        function: any MTLFunction
    ) throws -> any MTLComputePipelineState {
        Pipeline(function as! Function)
    }
    public func makeBuffer(length: Int, options: MTLResourceOptions) -> (any MTLBuffer)? {
        precondition(length > 0)
        return Buffer(length)
    }
    public func makeBuffer(
        bytes: UnsafeRawPointer, length: Int, options: MTLResourceOptions
    ) -> (any MTLBuffer)? {
        let buffer = makeBuffer(length: length, options: options)
        buffer?.contents().copyMemory(from: bytes, byteCount: length)
        return buffer
    }
    public func makeBuffer(
        bytesNoCopy pointer: UnsafeMutableRawPointer, length: Int, options: MTLResourceOptions,
        deallocator: ((UnsafeMutableRawPointer, Int) -> Void)?
    ) -> (any MTLBuffer)? {
        let page = Buffer.page
        precondition(Int(bitPattern: pointer) % page == 0 && length % page == 0 && length > 0)
        Self.uncopied += 1
        return Buffer(pointer, length)
    }
}

/// Where a kernel's parameters come from, read from the source's attributes.
private enum Source: Equatable {
    case buffer(Int), threadgroup(Int), builtin(metal_shim_source)
}

private final class Library: NSObject, MTLLibrary {
    private var functions: [String: Function] = [:]

    init(_ source: String) throws {
        let builtins: [Substring: metal_shim_source] = [
            "threadgroup_position_in_grid": METAL_SHIM_THREADGROUP_POSITION_IN_GRID,
            "thread_index_in_threadgroup": METAL_SHIM_THREAD_INDEX_IN_THREADGROUP,
            "thread_index_in_simdgroup": METAL_SHIM_THREAD_INDEX_IN_SIMDGROUP,
            "simdgroup_index_in_threadgroup": METAL_SHIM_SIMDGROUP_INDEX_IN_THREADGROUP,
            "simdgroups_per_threadgroup": METAL_SHIM_SIMDGROUPS_PER_THREADGROUP,
        ]
        for match in source.matches(of: /\nkernel void (\w+)\(([^{]*)\) \{/) {
            let sources = match.2.matches(of: /\[\[(\w+)(?:\((\d+)\))?\]\]/).map { attribute -> Source in
                switch (attribute.1, attribute.2.flatMap { Int($0) }) {
                case ("buffer", let index?): .buffer(index)
                case ("threadgroup", let index?): .threadgroup(index)
                case (let name, _): .builtin(builtins[name]!)
                }
            }
            let name = String(match.1)
            precondition(Int(metal_shim_parameters(name)) == sources.count, "\(name) is unlike its C++.")
            functions[name] = Function(name, sources)
        }
    }

    func makeFunction(name functionName: String) -> (any MTLFunction)? { functions[functionName] }
}

private final class Function: NSObject, MTLFunction {
    let name: String
    let sources: [Source]
    init(_ name: String, _ sources: [Source]) { (self.name, self.sources) = (name, sources) }
}

private final class Pipeline: NSObject, MTLComputePipelineState {
    let function: Function
    init(_ function: Function) { self.function = function }
    var maxTotalThreadsPerThreadgroup: Int { 1024 }
}

private final class Buffer: NSObject, MTLBuffer {
    static let page = sysconf(Int32(_SC_PAGESIZE))
    let length: Int
    private let start: UnsafeMutableRawPointer
    private var map: UnsafeMutableRawBufferPointer?

    /// Memory of its own that ends where a page begins which must not be touched: a kernel that reads
    /// or writes beyond the end stops the process.
    init(_ length: Int) {
        let room = (length + Self.page - 1) / Self.page * Self.page
        let first = mmap(nil, room + Self.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
        precondition(first != MAP_FAILED && mprotect(first + room, Self.page, PROT_NONE) == 0)
        map = UnsafeMutableRawBufferPointer(start: first, count: room + Self.page)
        self.length = length
        start = first + room - length
        start.initializeMemory(as: UInt8.self, repeating: 0xFF, count: length)  // nothing is zero by itself
    }

    /// Another's memory.
    init(_ start: UnsafeMutableRawPointer, _ length: Int) { (self.start, self.length) = (start, length) }

    deinit { if let map { munmap(map.baseAddress, map.count) } }
    func contents() -> UnsafeMutableRawPointer { start }
}

private final class Queue: NSObject, MTLCommandQueue {
    func makeCommandBuffer() -> (any MTLCommandBuffer)? { CommandBuffer() }
}

private final class CommandBuffer: NSObject, MTLCommandBuffer {
    private(set) var error: (any Error)?
    private var encoder: Encoder?
    private var isCommitted = false

    func makeComputeCommandEncoder() -> (any MTLComputeCommandEncoder)? {
        let encoder = Encoder()
        self.encoder = encoder
        return encoder
    }

    func commit() {
        precondition(encoder?.isEnded == true && !isCommitted)
        isCommitted = true
    }

    func waitUntilCompleted() {
        precondition(isCommitted)
        for command in encoder!.commands {
            if let sentence = command() {
                error = CocoaError(.executableRuntimeMismatch, userInfo: [NSLocalizedDescriptionKey: sentence])
                return
            }
        }
    }
}

private final class Encoder: NSObject, MTLComputeCommandEncoder {
    var commands: [() -> String?] = []
    private(set) var isEnded = false
    private var pipeline: Pipeline?
    private var buffers: [Int: (owner: AnyObject, pointer: UnsafeMutableRawPointer)] = [:]
    private var memory: [Int: Int] = [:]

    func setComputePipelineState(_ state: any MTLComputePipelineState) { pipeline = state as? Pipeline }

    func setBuffer(_ buffer: (any MTLBuffer)?, offset: Int, index: Int) {
        precondition(index < 31 && offset >= 0 && offset % 4 == 0)
        buffers[index] = buffer.map { buffer in
            precondition(offset < buffer.length)
            return (buffer, buffer.contents() + offset)
        }
    }

    func setBytes(_ bytes: UnsafeRawPointer, length: Int, index: Int) {
        precondition(length <= 4096)
        let copy = Buffer(length)
        copy.contents().copyMemory(from: bytes, byteCount: length)
        setBuffer(copy, offset: 0, index: index)
    }

    func setThreadgroupMemoryLength(_ length: Int, index: Int) {
        precondition(length % 16 == 0 && length <= 32768)
        memory[index] = length
    }

    func dispatchThreadgroups(_ threadgroupsPerGrid: MTLSize, threadsPerThreadgroup: MTLSize) {
        let (function, buffers, memory) = (pipeline!.function, buffers, memory)
        precondition(threadsPerThreadgroup.height == 1 && threadsPerThreadgroup.depth == 1)
        precondition(memory.values.reduce(0, +) <= 32768)
        commands.append {
            SerialDevice.dispatched.append(function.name)
            var rooms: [UnsafeMutableRawPointer] = []
            defer { rooms.forEach { $0.deallocate() } }
            let arguments = function.sources.map { source -> metal_shim_argument in
                switch source {
                case .buffer(let index):
                    return metal_shim_argument(source: METAL_SHIM_POINTER, pointer: buffers[index]!.pointer)
                case .threadgroup(let index):
                    let length = memory[index]!
                    let room = UnsafeMutableRawPointer.allocate(byteCount: length, alignment: 64)
                    // Nothing is zero by itself.
                    room.initializeMemory(as: UInt8.self, repeating: 0xFF, count: length)
                    rooms.append(room)
                    return metal_shim_argument(source: METAL_SHIM_POINTER, pointer: room)
                case .builtin(let source):
                    return metal_shim_argument(source: source, pointer: nil)
                }
            }
            let groups = [threadgroupsPerGrid.width, threadgroupsPerGrid.height, threadgroupsPerGrid.depth]
            return metal_shim_run(
                function.name, arguments, groups.map(UInt32.init), UInt32(threadsPerThreadgroup.width)
            ).map { String(cString: $0) }
        }
    }

    func endEncoding() { isEnded = true }
}
