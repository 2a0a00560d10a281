import Foundation
import Observation

/// A model on this device.
struct ModelEntry: Identifiable, Equatable, Hashable, Sendable {
    enum Form: Equatable, Hashable, Sendable {
        /// A checkpoint's folder: config.json and .safetensors.
        case checkpoint
        /// A Core ML package with its resources beside it.
        case package(resources: URL)
    }

    let url: URL
    let form: Form
    let bytes: Int

    var id: URL { url }
    var name: String { url.deletingPathExtension().lastPathComponent }

    /// What can run it.
    var engines: [EngineKind] {
        switch form {
        case .checkpoint: [.cpu, .mlx]
        case .package: [.coreML]
        }
    }
}

/// The models in the app's folder, which the Files app shows, and those on their way there.
@MainActor
@Observable
final class ModelLibrary {
    private(set) var entries: [ModelEntry] = []
    private(set) var downloads: [ModelDownload] = []
    var problem: String?

    let folder: URL
    @ObservationIgnored private let transport: any Transport

    init(folder: URL, transport: any Transport = URLSessionTransport()) {
        self.folder = folder
        self.transport = transport
    }

    /// Looks again: files come through the Files app as well.
    func refresh() {
        entries = Self.models(in: folder)
    }

    /// Starts the download of `id`, or goes on with one that stopped.
    func download(_ id: String, token: String?) {
        let id = id.trimmingCharacters(in: .whitespacesAndNewlines)
        let download = downloads.first { $0.id == id } ?? ModelDownload(id: id, into: folder, by: transport)
        if !downloads.contains(where: { $0 === download }) { downloads.append(download) }
        download.start(token: token)
        Task {
            await download.finished()
            guard download.phase == .done else { return }
            downloads.removeAll { $0 === download }
            refresh()
        }
    }

    /// Ends a download and removes what has arrived.
    func discard(_ download: ModelDownload) async {
        download.stop()
        await download.finished()
        downloads.removeAll { $0 === download }
        try? FileManager.default.removeItem(at: download.unfinished)
    }

    /// Copies what the Files app gave: a checkpoint's folder, or a package with its resources. All or nothing.
    func add(_ urls: [URL]) async {
        problem = nil
        do {
            let folder = folder
            try await Task.detached { try Self.copy(urls, into: folder) }.value
        } catch {
            problem = error.localizedDescription
        }
        refresh()
    }

    func remove(_ entry: ModelEntry) {
        do {
            try FileManager.default.removeItem(at: entry.url)
            if case .package(let resources) = entry.form {
                try FileManager.default.removeItem(at: resources)
                try? FileManager.default.removeItem(at: entry.url.deletingPathExtension().appendingPathExtension("mlmodelc"))
            }
        } catch {
            problem = "\(entry.name) could not be removed: \(error.localizedDescription)"
        }
        refresh()
    }

    nonisolated static func models(in folder: URL) -> [ModelEntry] {
        let files = FileManager.default
        let found = (try? files.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
        return found.compactMap { entry($0) }.sorted { $0.name < $1.name }
    }

    /// nil for what is no model.
    nonisolated private static func entry(_ url: URL) -> ModelEntry? {
        let files = FileManager.default
        if ["mlpackage", "mlmodelc"].contains(url.pathExtension) {
            let stem = url.deletingPathExtension().lastPathComponent
            let resources = url.deletingLastPathComponent().appending(path: "\(stem)-resources")
            guard files.fileExists(atPath: resources.appending(path: "manifest.json").path) else { return nil }
            let source = url.deletingPathExtension().appendingPathExtension("mlpackage")
            // What the package was compiled to lies beside it, and is no second model.
            guard url == source || !files.fileExists(atPath: source.path) else { return nil }
            return ModelEntry(url: url, form: .package(resources: resources), bytes: bytes(in: url) + bytes(in: resources))
        }
        guard url.pathExtension != "download",
            files.fileExists(atPath: url.appending(path: "config.json").path)
        else { return nil }
        return ModelEntry(url: url, form: .checkpoint, bytes: bytes(in: url))
    }

    nonisolated private static func bytes(in folder: URL) -> Int {
        let walk = FileManager.default.enumerator(at: folder, includingPropertiesForKeys: [.fileSizeKey])
        return (walk?.compactMap { ($0 as? URL)?.fileSize } ?? []).reduce(0, +)
    }

    nonisolated private static func copy(_ urls: [URL], into folder: URL) throws {
        let files = FileManager.default
        let staging = folder.appending(path: "import-\(UUID().uuidString).download")
        try files.createDirectory(at: staging, withIntermediateDirectories: true)
        defer { try? files.removeItem(at: staging) }
        for url in urls {
            let scoped = url.startAccessingScope()
            defer { if scoped { url.stopAccessingScope() } }
            try files.copyItem(at: url, to: staging.appending(path: url.lastPathComponent))
        }
        guard !models(in: staging).isEmpty else {
            throw ImportError(
                names: urls.map(\.lastPathComponent).joined(separator: " and "))
        }
        for url in urls where files.fileExists(atPath: folder.appending(path: url.lastPathComponent).path) {
            throw ImportError(names: url.lastPathComponent, isThereAlready: true)
        }
        for url in urls {
            try files.moveItem(
                at: staging.appending(path: url.lastPathComponent),
                to: folder.appending(path: url.lastPathComponent))
        }
    }
}

/// What was chosen in Files cannot be added.
struct ImportError: LocalizedError {
    let names: String
    var isThereAlready = false

    var errorDescription: String? {
        isThereAlready
            ? "There is a model of the name \(names) already: remove it first."
            : "\(names): no model. Choose a checkpoint's folder, or a .mlpackage together with its -resources folder."
    }
}

extension URL {
    fileprivate var fileSize: Int? { try? resourceValues(forKeys: [.fileSizeKey]).fileSize }

    // Files outside the app's own folders need permission on Apple's systems.
    fileprivate func startAccessingScope() -> Bool {
        #if canImport(Darwin)
            startAccessingSecurityScopedResource()
        #else
            false
        #endif
    }

    fileprivate func stopAccessingScope() {
        #if canImport(Darwin)
            stopAccessingSecurityScopedResource()
        #endif
    }
}
