import Foundation
import MobileMoEKernel

/// Calls a function of the kernel that takes an error last; throws its sentence.
package func kernel(_ call: (UnsafeMutablePointer<mobilemoe_error>) -> mobilemoe_status) throws {
    var error = mobilemoe_error()
    let status = call(&error)
    guard status != MOBILEMOE_OK else { return }
    let text = withUnsafeBytes(of: &error.message) {
        String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
    }
    switch status {
    case MOBILEMOE_CANCELLED: throw CancellationError()
    case MOBILEMOE_BUSY: throw MobileMoEError(.busy, text)
    case MOBILEMOE_OUT_OF_MEMORY: throw MobileMoEError(.memory, text)
    case MOBILEMOE_CONTEXT_FULL: throw MobileMoEError(.input, text)
    case MOBILEMOE_READ_FAILED:
        throw MobileMoEError(
            .checkpoint, "\(text) Copy the checkpoint again, and load it anew.")
    default: throw MobileMoEError(.kernel, text)
    }
}

// Handles may be used from any thread, and are destroyed with their objects.

package final class KernelRuntime: @unchecked Sendable {
    package let handle: OpaquePointer
    let cpuPath: String

    package init(precision: mobilemoe_precision, threads: Int, cpuPath: String?) throws {
        var made: OpaquePointer?
        func create(_ path: UnsafePointer<CChar>?) throws {
            var options = mobilemoe_runtime_options(
                precision: Int32(precision.rawValue), threads: Int32(threads), cpu_path: path)
            try kernel { mobilemoe_runtime_create(&options, &made, $0) }
        }
        if let cpuPath { try cpuPath.withCString { try create($0) } } else { try create(nil) }
        handle = made!
        self.cpuPath = String(cString: mobilemoe_runtime_cpu_path(handle))
    }

    deinit { mobilemoe_runtime_destroy(handle) }
}

/// The files that routed experts are read from when they are needed.
final class KernelExpertFiles: @unchecked Sendable {
    let handle: OpaquePointer

    init(
        _ config: inout mobilemoe_config, _ layers: [[StoredTensor]]
    ) throws {
        // The kernel copies the paths.
        let paths = Set(layers.joined().map(\.path)).map { ($0, strdup($0)!) }
        defer { for (_, path) in paths { free(path) } }
        let copies = Dictionary(uniqueKeysWithValues: paths)
        func part(_ tensor: StoredTensor) -> mobilemoe_expert_part {
            mobilemoe_expert_part(
                path: copies[tensor.path]!, offset: UInt64(tensor.offset), flip: 0)
        }
        let parts = layers.map {
            mobilemoe_expert_parts(
                gate_up_codes: part($0[0]), gate_up_scales: part($0[1]), down_codes: part($0[2]),
                down_scales: part($0[3]))
        }
        var made: OpaquePointer?
        try kernel { mobilemoe_expert_files_create(&config, parts, &made, $0) }
        handle = made!
    }

    deinit { mobilemoe_expert_files_destroy(handle) }

    func source(memory: Int) -> mobilemoe_expert_source {
        var source = mobilemoe_expert_source()
        mobilemoe_expert_files_source(handle, memory, &source)
        return source
    }
}

final class KernelModel: @unchecked Sendable {
    let handle: OpaquePointer
    let runtime: KernelRuntime
    private let keep: [any Sendable]

    /// `keep`: what the weights lie in.
    init(
        _ runtime: KernelRuntime, _ config: inout mobilemoe_config, _ weights: inout mobilemoe_weights,
        keep: [any Sendable]
    ) throws {
        var made: OpaquePointer?
        try kernel { mobilemoe_model_create(runtime.handle, &config, &weights, &made, $0) }
        handle = made!
        self.runtime = runtime
        self.keep = keep
    }

    deinit { mobilemoe_model_destroy(handle) }

    var expertCounters: mobilemoe_expert_counters {
        var counters = mobilemoe_expert_counters()
        mobilemoe_model_expert_counters(handle, &counters)
        return counters
    }
}

final class KernelSession: @unchecked Sendable {
    let handle: OpaquePointer
    let model: KernelModel

    init(_ model: KernelModel, context: Int, cache: mobilemoe_cache_type, block: Int) throws {
        var made: OpaquePointer?
        var options = mobilemoe_session_options(
            context: Int32(context), cache_type: Int32(cache.rawValue), block: Int32(block))
        try kernel { mobilemoe_session_create(model.handle, &options, &made, $0) }
        handle = made!
        self.model = model
    }

    deinit { mobilemoe_session_destroy(handle) }
}
