import Foundation
import MobileMoE
import Observation

/// A model on its way to the device: it can be stopped and goes on later, even after the app was ended.
///
/// What has arrived lies in the folder NAME.download. The model takes its own name when every file is
/// there and its checksum is right, so that a model under its own name is always whole.
@MainActor
@Observable
final class ModelDownload: Identifiable {
    enum Phase: Equatable {
        case asking, downloading, checking, done, stopped
        case failed(String)
    }

    nonisolated let id: String
    private(set) var phase = Phase.asking
    private(set) var receivedBytes = 0
    private(set) var totalBytes = 0

    var fraction: Double { totalBytes > 0 ? Double(receivedBytes) / Double(totalBytes) : 0 }
    var isRunning: Bool { [.asking, .downloading, .checking].contains(phase) }

    @ObservationIgnored private let folder: URL
    @ObservationIgnored private let transport: any Transport
    @ObservationIgnored private let freeBytes: @Sendable (URL) -> Int?
    @ObservationIgnored private var task: Task<Void, Never>?

    /// `folder`: where models lie. `freeBytes`: of the disk that holds a folder; nil where it cannot be told.
    init(
        id: String, into folder: URL, by transport: any Transport,
        freeBytes: @escaping @Sendable (URL) -> Int? = ModelDownload.freeBytes
    ) {
        self.id = id.trimmingCharacters(in: .whitespacesAndNewlines)
        self.folder = folder
        self.transport = transport
        self.freeBytes = freeBytes
    }

    /// The folder's name on the device: the repository's, without its owner.
    var name: String { id.split(separator: "/").last.map(String.init) ?? id }
    var destination: URL { folder.appending(path: name, directoryHint: .isDirectory) }
    var unfinished: URL { folder.appending(path: "\(name).download", directoryHint: .isDirectory) }

    /// Starts, or goes on where an earlier start stopped.
    func start(token: String?) {
        guard task == nil else { return }
        phase = .asking
        task = Task {
            do {
                try await run(token)
                phase = .done
            } catch is CancellationError {
                phase = .stopped
            } catch let error as DownloadError {
                phase = .failed(error.localizedDescription)
            } catch {
                let broken = Task.isCancelled ? .stopped : Phase.failed(Self.sentence(for: error))
                phase = broken
            }
            task = nil
        }
    }

    /// Stops; what has arrived stays for the next start.
    func stop() { task?.cancel() }

    /// Returns when it has stopped, failed or is done.
    func finished() async { await task?.value }

    private func run(_ token: String?) async throws {
        let repository = try await HubRepository.find(id, token: token, by: transport)
        totalBytes = repository.bytes
        try prepare(for: repository)
        let sizes = try repository.files.map { min(try size(of: $0), $0.size) }
        receivedBytes = sizes.reduce(0, +)
        let missing = totalBytes - receivedBytes
        if let free = freeBytes(folder), free < missing { throw DownloadError.noSpace(needed: missing, free: free) }
        phase = .downloading
        // What says whether this is a model at all comes first, and is small.
        for file in repository.files.sorted(by: { $0.size < $1.size }) {
            try await fetch(file, of: repository, token)
        }
        phase = .checking
        for file in repository.files {
            try Task.checkCancellation()
            guard let wanted = file.sha256 else { continue }
            let url = place(of: file)
            let found = try await Task.detached { try sha256(ofFile: url) }.value
            guard found == wanted else {
                try FileManager.default.removeItem(at: url)
                throw DownloadError.damaged(file: file.path)
            }
        }
        try FileManager.default.removeItem(at: stamp)
        if FileManager.default.fileExists(atPath: destination.path) {
            _ = try FileManager.default.replaceItemAt(destination, withItemAt: unfinished)
        } else {
            try FileManager.default.moveItem(at: unfinished, to: destination)
        }
        try leaveOutOfBackups(destination)
    }

    /// The commit that the unfinished folder holds parts of.
    private var stamp: URL { unfinished.appending(path: ".commit") }

    private func place(of file: HubRepository.File) -> URL { unfinished.appending(path: file.path) }

    private func size(of file: HubRepository.File) throws -> Int {
        let path = place(of: file).path
        guard FileManager.default.fileExists(atPath: path) else { return 0 }
        return try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int ?? 0
    }

    /// Apple asks that what can be downloaded again takes no room in a backup of the device.
    private func leaveOutOfBackups(_ folder: URL) throws {
        var values = URLResourceValues()
        values.isExcludedFromBackup = true
        var folder = folder
        try folder.setResourceValues(values)
    }

    /// Parts of another commit are no beginning of this one.
    private func prepare(for repository: HubRepository) throws {
        let files = FileManager.default
        if (try? String(contentsOf: stamp, encoding: .utf8)) != repository.commit {
            if files.fileExists(atPath: unfinished.path) { try files.removeItem(at: unfinished) }
            try files.createDirectory(at: unfinished, withIntermediateDirectories: true)
            try leaveOutOfBackups(unfinished)
            try repository.commit.write(to: stamp, atomically: true, encoding: .utf8)
        }
    }

    private func fetch(_ file: HubRepository.File, of repository: HubRepository, _ token: String?) async throws {
        var have = try size(of: file)
        if have > file.size {  // of a file that shrank while it was written
            try FileManager.default.removeItem(at: place(of: file))
            have = 0
        }
        guard have < file.size || file.size == 0 else { return }
        var headers = HubRepository.headers(token: token)
        if have > 0 { headers["Range"] = "bytes=\(have)-" }
        let response = try await transport.get(repository.url(of: file), headers: headers)
        try HubRepository.check(response.status, have > 0 ? [200, 206] : [200], id: id)
        let url = place(of: file)
        if response.status == 200 {  // from the beginning, whatever was asked for
            receivedBytes -= have
            have = 0
            guard FileManager.default.createFile(atPath: url.path, contents: nil) else {
                throw CocoaError(.fileWriteUnknown)
            }
        }
        let handle = try FileHandle(forWritingTo: url)
        defer { try? handle.close() }
        try handle.seekToEnd()
        for try await piece in response.body {
            try Task.checkCancellation()
            guard have + piece.count <= file.size else {
                try FileManager.default.removeItem(at: url)
                throw DownloadError.tooLong(file: file.path)
            }
            try handle.write(contentsOf: piece)
            have += piece.count
            receivedBytes += piece.count
        }
        try Task.checkCancellation()
        guard have == file.size else {
            throw DownloadError.network("\(have) of \(file.size) bytes of \(file.path) arrived")
        }
    }

    private static func sentence(for error: any Error) -> String {
        let error = error as NSError
        let reasons = [error] + [error.userInfo[NSUnderlyingErrorKey] as? NSError].compactMap { $0 }
        let isFull = reasons.contains {
            ($0.domain == NSPOSIXErrorDomain && $0.code == Int(ENOSPC))
                || ($0.domain == NSCocoaErrorDomain && $0.code == CocoaError.fileWriteOutOfSpace.rawValue)
        }
        if isFull { return "The device is full: free some space, and start again to go on where it stopped." }
        if error.domain == NSURLErrorDomain {
            return DownloadError.network(error.localizedDescription).localizedDescription
        }
        return error.localizedDescription
    }

    nonisolated static func freeBytes(at url: URL) -> Int? {
        let attributes = try? FileManager.default.attributesOfFileSystem(forPath: url.path)
        return (attributes?[.systemFreeSize] as? NSNumber)?.intValue
    }
}
