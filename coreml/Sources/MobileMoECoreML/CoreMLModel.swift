#if canImport(CoreML)
    import CoreML
    import Foundation
    import MobileMoE
    import MobileMoELayers

    /// A package that `mobilemoe export coreml` wrote, run by Core ML.
    ///
    /// Both forms: the ML Program, and the network of custom layers, whose classes are in this module.
    public final class CoreMLModel: Engine {
        public let vocabularySize: Int
        public let endOfAnswer: Set<Int>
        public let summary: String
        /// The folder with the package's manifest, tokenizer and settings.
        public let resources: URL
        private let manifest: PackageManifest
        private let package: LoadedPackage

        /// Loads `package`: NAME.mlmodelc, as Xcode puts it into an app, or NAME.mlpackage, which is
        /// compiled on the device first. `resources` is the folder NAME-resources, if not beside it.
        ///
        /// Throws MobileMoEError for all that is wrong with the files, and where the memory does not
        /// suffice, and what Core ML throws.
        public init(
            package: URL, resources: URL? = nil, options: CoreMLOptions = CoreMLOptions()
        ) async throws {
            let name = package.deletingPathExtension().lastPathComponent
            let folder = resources
                ?? package.deletingLastPathComponent().appendingPathComponent("\(name)-resources")
            let manifest = try PackageManifest(folder)
            try Self.checkMemory(manifest, options, name)
            if manifest.form == .customLayers {
                LayerOptions.current = options.layers
                if let sha256 = manifest.sideFileSHA256 {
                    try SideFile.register(folder.appendingPathComponent("weights.bin"), sha256: sha256)
                }
            }
            let compiled = try await compiledModel(package)
            self.manifest = manifest
            self.resources = folder
            self.package = try await onQueue(loading) { try LoadedPackage(compiled, manifest, options) }
            vocabularySize = manifest.vocabularySize
            endOfAnswer = manifest.endOfAnswer
            let form = manifest.form == .program ? "an ML Program" : "custom layers"
            summary = "\(name), \(form) in Core ML, \(bytesText(manifest.weightBytes)), "
                + "\(manifest.context) tokens in blocks of \(manifest.block)"
        }

        public func makeSession() async throws -> any ModelSession {
            let runner: any PackageRunner =
                switch package {
                case .program(let program): ProgramRunner(program, manifest)
                case .customLayers(let network): try CustomLayerRunner(network, manifest)
                }
            return CoreMLSession(runner, manifest)
        }

        private static func checkMemory(
            _ manifest: PackageManifest, _ options: CoreMLOptions, _ name: String
        ) throws {
            let isDouble = manifest.form == .program && options.stateSharing == .copied
            let needed = manifest.weightBytes + manifest.cacheBytes * (isDouble ? 2 : 1)
            guard let available = options.memoryLimit ?? availableMemory(), needed > available else {
                return
            }
            throw MobileMoEError(
                .memory,
                "\(name) needs \(bytesText(needed)) of memory at least (weights "
                    + "\(bytesText(manifest.weightBytes)), cache \(bytesText(manifest.cacheBytes))), and "
                    + "\(bytesText(available)) can be had. Choose a smaller model, or one exported with a "
                    + "shorter --context.")
        }
    }

    extension MobileMoEModel {
        /// A package as `CoreMLModel` takes it; with the tokenizer of its resources folder, or with yours.
        public convenience init(
            package: URL, resources: URL? = nil, options: CoreMLOptions = CoreMLOptions(),
            tokenizer: (any Tokenizer)? = nil
        ) async throws {
            let engine = try await CoreMLModel(package: package, resources: resources, options: options)
            let own = try await onQueue(loading) {
                try tokenizer ?? CheckpointTokenizer(
                    folder: engine.resources, vocabularySize: engine.vocabularySize,
                    endOfAnswer: Array(engine.endOfAnswer))
            }
            try await self.init(engine: engine, tokenizer: own)
        }
    }

    private let loading = DispatchQueue(label: "MobileMoE loading")

    /// A package's compiled model: itself, or compiled now and kept beside the package.
    private func compiledModel(_ package: URL) async throws -> URL {
        let files = FileManager.default
        guard files.fileExists(atPath: package.path) else {
            throw MobileMoEError(.checkpoint, "\(package.path) does not exist.")
        }
        switch package.pathExtension {
        case "mlmodelc": return package
        case "mlpackage": break
        default:
            throw MobileMoEError(
                .checkpoint, "\(package.path) is no package: its name must end in .mlpackage or .mlmodelc.")
        }
        func date(_ url: URL) -> Date? {
            (try? files.attributesOfItem(atPath: url.path))?[.modificationDate] as? Date
        }
        let kept = package.deletingPathExtension().appendingPathExtension("mlmodelc")
        if let made = date(kept), let source = date(package), made >= source { return kept }
        let compiled = try await MLModel.compileModel(at: package)
        try? files.removeItem(at: kept)
        // Where the folder cannot be written to, the model is compiled at each launch.
        return (try? files.moveItem(at: compiled, to: kept)) == nil ? compiled : kept
    }

    /// The loaded functions of a package. Core ML's objects are used by one call at a time.
    enum LoadedPackage: @unchecked Sendable {
        case program(Program)
        case customLayers(MLModel)

        struct Program {
            let prefill: MLModel
            let decode: MLModel
            let stateSharing: CoreMLOptions.StateSharing
        }

        init(_ compiled: URL, _ manifest: PackageManifest, _ options: CoreMLOptions) throws {
            func load(_ function: String?, _ units: MLComputeUnits) throws -> MLModel {
                let configuration = MLModelConfiguration()
                configuration.computeUnits = units
                if let function { configuration.functionName = function }
                return try MLModel(contentsOf: compiled, configuration: configuration)
            }
            switch manifest.form {
            case .program:
                self = .program(
                    Program(
                        prefill: try load("prefill", options.computeUnits),
                        decode: try load("decode", options.computeUnits),
                        stateSharing: options.stateSharing))
            case .customLayers:
                // The linker leaves out what nothing names, and Core ML asks for these by their names.
                _ = [
                    MobileMoEEmbedding.self, MobileMoEAttention.self, MobileMoEExperts.self,
                    MobileMoECacheRows.self, MobileMoEHead.self,
                ]
                self = .customLayers(try load(nil, .cpuOnly))
            }
        }
    }

    /// Runs `work`, which blocks, on a thread of `queue` and none of Swift's own pool.
    func onQueue<Value: Sendable>(
        _ queue: DispatchQueue, _ work: @escaping @Sendable () throws -> Value
    ) async throws -> Value {
        try await withCheckedThrowingContinuation { continuation in
            queue.async { continuation.resume(with: Result { try work() }) }
        }
    }
#endif
