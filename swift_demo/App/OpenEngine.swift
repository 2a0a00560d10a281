import Foundation
import MobileMoE
import MobileMoECoreML

/// Opens a model with an engine, and the tokenizer that lies with it.
func openEngine(_ entry: ModelEntry, _ kind: EngineKind, _ options: CPUOptions) async throws -> any DemoEngine {
    switch (kind, entry.form) {
    case (.cpu, .checkpoint):
        return PackageEngine(model: try await MobileMoEModel(folder: entry.url, options: options))
    case (.coreML, .package(let resources)):
        let engine = try await CoreMLModel(package: entry.url, resources: resources)
        let tokenizer = try CheckpointTokenizer(
            folder: resources, vocabularySize: engine.vocabularySize, endOfAnswer: Array(engine.endOfAnswer))
        return PackageEngine(model: try await MobileMoEModel(engine: engine, tokenizer: tokenizer))
    default:
        throw MobileMoEError(.input, "\(kind.title) does not run \(entry.name).")
    }
}
