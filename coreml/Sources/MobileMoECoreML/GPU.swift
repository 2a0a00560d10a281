#if canImport(Metal)
    import Foundation
    import Metal
    import MobileMoE
    import MobileMoELayers

    /// The device with its kernels, and room to compute in, which all layers use in turns.
    final class GPU {
        let lock = NSLock()
        private let device: any MTLDevice
        private let queue: any MTLCommandQueue
        private let library: any MTLLibrary
        private var pipelines: [String: any MTLComputePipelineState] = [:]
        private var rooms: [String: any MTLBuffer] = [:]

        private static let makers = NSLock()
        nonisolated(unsafe) private static var made: GPU?

        static func shared() throws -> GPU {
            try makers.withLock {
                if let made { return made }
                let gpu = try GPU()
                made = gpu
                return gpu
            }
        }

        init() throws {
            guard let device = MTLCreateSystemDefaultDevice(), device.supportsFamily(.apple7),
                let queue = device.makeCommandQueue()
            else {
                throw MobileMoEError(
                    .kernel,
                    "The experts' kernels need a GPU of Apple's from A14 or M1 on. Leave expertsOnGPU false.")
            }
            (self.device, self.queue) = (device, queue)
            guard let url = Bundle.module.url(forResource: "experts", withExtension: "metal", subdirectory: "Metal"),
                let source = try? String(contentsOf: url, encoding: .utf8)
            else {
                throw MobileMoEError(.kernel, "The app lacks experts.metal of the package MobileMoE.")
            }
            let options = MTLCompileOptions()
            options.mathMode = .safe
            options.mathFloatingPointFunctions = .precise
            do {
                library = try device.makeLibrary(source: source, options: options)
            } catch {
                throw MobileMoEError(.kernel, "experts.metal does not compile here: \(error)")
            }
        }

        /// A buffer of weights: where they are, if they begin at a page, else a copy.
        func buffer(_ bytes: WeightBytes) throws -> any MTLBuffer {
            let buffer: (any MTLBuffer)? =
                if bytes.beginsAtPage {
                    device.makeBuffer(
                        bytesNoCopy: UnsafeMutableRawPointer(mutating: bytes.start),
                        length: (bytes.count + SideFile.alignment - 1) / SideFile.alignment
                            * SideFile.alignment,
                        options: .storageModeShared, deallocator: nil)
                } else {
                    device.makeBuffer(
                        bytes: bytes.start, length: bytes.count, options: .storageModeShared)
                }
            guard let buffer else { throw Self.tooLarge(bytes.count) }
            return buffer
        }

        /// Room of this name that is large enough; what was in it may be gone when it grows.
        func room(_ name: String, _ bytes: Int) throws -> any MTLBuffer {
            if let room = rooms[name], room.length >= bytes { return room }
            guard let room = device.makeBuffer(length: bytes, options: .storageModeShared) else {
                throw Self.tooLarge(bytes)
            }
            rooms[name] = room
            return room
        }

        /// Encodes and waits until all is computed.
        func run(_ encode: (Encoding) throws -> Void) throws {
            guard let commands = queue.makeCommandBuffer(),
                let encoder = commands.makeComputeCommandEncoder()
            else { throw MobileMoEError(.kernel, "The GPU takes no commands.") }
            do {
                try encode(Encoding(self, encoder))
            } catch {
                encoder.endEncoding()
                throw error
            }
            encoder.endEncoding()
            commands.commit()
            commands.waitUntilCompleted()
            if let error = commands.error {
                throw MobileMoEError(.kernel, "The GPU failed: \(error.localizedDescription)")
            }
        }

        fileprivate func pipeline(_ name: String) throws -> any MTLComputePipelineState {
            if let pipeline = pipelines[name] { return pipeline }
            guard let function = library.makeFunction(name: name),
                let pipeline = try? device.makeComputePipelineState(function: function)
            else { throw MobileMoEError(.kernel, "The GPU has no kernel \(name).") }
            pipelines[name] = pipeline
            return pipeline
        }

        private static func tooLarge(_ bytes: Int) -> MobileMoEError {
            MobileMoEError(.memory, "The GPU has no room for \(bytes) bytes. Leave expertsOnGPU false.")
        }
    }

    /// Dispatches kernels one after the other: each sees what those before it wrote.
    struct Encoding {
        private let gpu: GPU
        private let encoder: any MTLComputeCommandEncoder

        fileprivate init(_ gpu: GPU, _ encoder: any MTLComputeCommandEncoder) {
            (self.gpu, self.encoder) = (gpu, encoder)
        }

        /// `sizes` is buffer 0 and `buffers` those from 1 on; `memory`: bytes of a threadgroup.
        func callAsFunction<Sizes>(
            _ kernel: String, _ sizes: Sizes, _ buffers: [(any MTLBuffer)?], groups: (Int, Int),
            simdgroups: Int, memory: Int = 0
        ) throws {
            let pipeline = try gpu.pipeline(kernel)
            guard pipeline.maxTotalThreadsPerThreadgroup >= 32 * simdgroups else {
                throw MobileMoEError(
                    .kernel,
                    "The GPU runs at most \(pipeline.maxTotalThreadsPerThreadgroup) threads of \(kernel), "
                        + "which needs \(32 * simdgroups). Leave expertsOnGPU false.")
            }
            encoder.setComputePipelineState(pipeline)
            withUnsafeBytes(of: sizes) {
                encoder.setBytes($0.baseAddress!, length: $0.count, index: 0)
            }
            for (index, buffer) in buffers.enumerated() {
                encoder.setBuffer(buffer, offset: 0, index: index + 1)
            }
            if memory > 0 { encoder.setThreadgroupMemoryLength(memory, index: 0) }
            encoder.dispatchThreadgroups(
                MTLSize(width: groups.0, height: groups.1, depth: 1),
                threadsPerThreadgroup: MTLSize(width: 32 * simdgroups, height: 1, depth: 1))
        }
    }
#endif
