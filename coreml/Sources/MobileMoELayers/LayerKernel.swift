import Foundation
import MobileMoE
import MobileMoEKernel
import Synchronization

/// How the layers compute; set it before a model is loaded.
public struct LayerOptions: Sendable, Hashable {
    /// Of the CPU kernel; `exact` keeps the contract's limit of 1e-5.
    public var precision = CPUOptions.Precision.exact
    /// Of the CPU kernel; nil: one for each fast core.
    public var threads: Int?
    /// Whether MobileMoEExperts computes on the GPU, with kernels of its own in Metal.
    public var expertsOnGPU = false

    public init() {}

    /// Those that layers made from now on take.
    public static var current: LayerOptions {
        get { stored.withLock { $0 } }
        set { stored.withLock { $0 = newValue } }
    }

    private static let stored = Mutex(LayerOptions())
}

/// The CPU kernel with a pool of threads and room to compute in, which all layers share in turns.
final class LayerKernel: @unchecked Sendable {  // everything is used under `lock`
    private let runtime: KernelRuntime
    private let lock = NSLock()
    private var room = UnsafeMutableRawBufferPointer(start: nil, count: 0)

    private static let made = Mutex([LayerOptions: LayerKernel]())

    /// The kernel of the options in force.
    static func current() throws -> LayerKernel {
        var options = LayerOptions.current
        options.expertsOnGPU = false
        return try made.withLock { made in
            if let kernel = made[options] { return kernel }
            let kernel = try LayerKernel(options)
            made[options] = kernel
            return kernel
        }
    }

    private init(_ options: LayerOptions) throws {
        let cpu = CPUOptions(precision: options.precision, threads: options.threads)
        runtime = try KernelRuntime(
            precision: cpu.precision.kernelValue, threads: cpu.threadCount, cpuPath: nil)
    }

    deinit { room.deallocate() }

    /// Calls an operator with a workspace of the bytes that `bytes` asks for.
    func call(
        _ bytes: (OpaquePointer) -> Int,
        _ body: (OpaquePointer, UnsafeMutableRawPointer?, Int, UnsafeMutablePointer<mobilemoe_error>)
            -> mobilemoe_status
    ) throws {
        lock.lock()
        defer { lock.unlock() }
        let needed = bytes(runtime.handle)
        if needed > room.count {
            room.deallocate()
            room = .allocate(byteCount: needed, alignment: 64)
        }
        try kernel { body(runtime.handle, room.baseAddress, room.count, $0) }
    }
}

extension WeightBytes {
    var tensor: mobilemoe_tensor { mobilemoe_tensor(data: start, bytes: count) }
}

extension LayerWeights {
    func int4(_ name: String) throws -> mobilemoe_int4 {
        try mobilemoe_int4(codes: self["\(name)_codes"].tensor, scales: self["\(name)_scales"].tensor)
    }
}

extension LayerKernel {
    /// x / sqrt(mean(x^2) + eps) * weight for each of `count` rows.
    func norm(
        _ x: UnsafePointer<Float>, _ weight: WeightBytes, eps: Double, count: Int, width: Int
    ) throws -> [Float] {
        try [Float](unsafeUninitializedCapacity: count * width) { y, filled in
            var weight = weight.tensor
            try call({ _ in 0 }) { runtime, _, _, error in
                mobilemoe_rms_norm(
                    runtime, x, &weight, Int32(count), Int32(width), Float(eps), y.baseAddress, error)
            }
            filled = count * width
        }
    }

    func linear(
        _ weight: mobilemoe_int4, rows: Int, columns: Int, _ x: [Float], count: Int
    ) throws -> [Float] {
        var weight = weight
        return try [Float](unsafeUninitializedCapacity: count * rows) { y, filled in
            try call({ mobilemoe_linear_int4_workspace($0, Int32(count), Int32(rows), Int32(columns)) }) {
                mobilemoe_linear_int4(
                    $0, &weight, Int32(rows), Int32(columns), x, Int32(count), y.baseAddress, $1, $2, $3)
            }
            filled = count * rows
        }
    }
}
