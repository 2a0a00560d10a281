import Foundation
import MobileMoE
import MobileMoECoreML
import MobileMoEMLX

/// Opens a model with an engine, and the tokenizer that lies with it.
func openEngine(_ entry: ModelEntry, _ kind: EngineKind, _ options: CPUOptions) async throws -> any DemoEngine {
    switch (kind, entry.form) {
    case (.cpu, .checkpoint):
        return PackageEngine(model: try await MobileMoEModel(folder: entry.url, options: options))
    case (.coreML, .package(let resources)):
        return PackageEngine(model: try await MobileMoEModel(package: entry.url, resources: resources))
    case (.mlx, .checkpoint):
        return PackageEngine(model: try await MobileMoEMLXEngine.model(folder: entry.url))
    default:
        throw MobileMoEError(.input, "\(kind.title) does not run \(entry.name).")
    }
}
