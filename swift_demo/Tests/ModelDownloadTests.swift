import Foundation
import Testing

@testable import DemoViewModels

@MainActor
struct ModelDownloadTests {
    nonisolated static let id = "someone/tiny-moe"
    nonisolated static let weights = Data((0..<5000).map { UInt8(truncatingIfNeeded: $0 &* 31) })
    // Of `weights`, by Python's hashlib.
    nonisolated static let sum = "11013d0e177469e6b385980a5a34d5b464ff15299481d5b4fe88922180606221"
    nonisolated static let config = Data(#"{"model_type": "mobilemoe"}"#.utf8)

    nonisolated static func answers(commit: String = "abc1234") -> [String: FakeTransport.Answer] {
        let tree = """
            [{"type": "directory", "path": "original", "size": 0, "oid": "1"},
             {"type": "file", "path": "README.md", "size": 9, "oid": "2"},
             {"type": "file", "path": "model.safetensors", "size": 5000, "oid": "3",
              "lfs": {"oid": "\(sum)", "size": 5000, "pointerSize": 130}},
             {"type": "file", "path": "config.json", "size": \(config.count), "oid": "4"}]
            """
        return [
            "api/models/\(id)": .init(body: Data(#"{"sha": "\#(commit)", "id": "x"}"#.utf8)),
            "api/models/\(id)/tree/\(commit)": .init(body: Data(tree.utf8)),
            "\(id)/resolve/\(commit)/model.safetensors": .init(body: weights),
            "\(id)/resolve/\(commit)/config.json": .init(body: config),
        ]
    }

    func run(_ transport: FakeTransport, _ folder: URL, id: String = id, free: Int? = nil) async -> ModelDownload {
        let download = ModelDownload(id: id, into: folder, by: transport, freeBytes: { _ in free })
        download.start(token: "hf_secret")
        await download.finished()
        return download
    }

    @Test func aModelArrivesWhole() async throws {
        try await withFolder { folder in
            let transport = FakeTransport(Self.answers())
            let download = await run(transport, folder)
            #expect(download.phase == .done && download.fraction == 1)
            let model = folder.appending(path: "tiny-moe")
            try #expect(Data(contentsOf: model.appending(path: "model.safetensors")) == Self.weights)
            try #expect(FileManager.default.contentsOfDirectory(atPath: model.path).sorted() == ["config.json", "model.safetensors"])
            #expect(!FileManager.default.fileExists(atPath: download.unfinished.path))
            #expect(transport.asked.allSatisfy { $0.headers["Authorization"] == "Bearer hf_secret" })
            #expect(ModelLibrary.models(in: folder).map(\.name) == ["tiny-moe"])
            #if canImport(Darwin)  // Linux has no backups to leave it out of
            let values = try model.resourceValues(forKeys: [.isExcludedFromBackupKey])
            #expect(values.isExcludedFromBackup == true)
            #endif
        }
    }

    @Test func aBrokenConnectionGoesOnWhereItStopped() async throws {
        try await withFolder { folder in
            var answers = Self.answers()
            let path = "\(Self.id)/resolve/abc1234/model.safetensors"
            answers[path]?.breaksAfter = 1400
            let transport = FakeTransport(answers)
            let first = await run(transport, folder)
            guard case .failed(let sentence) = first.phase else {
                Issue.record("\(first.phase)")
                return
            }
            #expect(sentence.contains("broke off"))
            #expect(ModelLibrary.models(in: folder).isEmpty)  // half a model is none
            transport.set(path, .init(body: Self.weights))
            let second = await run(transport, folder)
            #expect(second.phase == .done)
            #expect(transport.asked.last { $0.path == path }?.headers["Range"] == "bytes=1400-")
            #expect(transport.asked.count { $0.path.hasSuffix("config.json") } == 1)
        }
    }

    @Test func aServerThatKnowsNoRangesBeginsAgain() async throws {
        try await withFolder { folder in
            let path = "\(Self.id)/resolve/abc1234/model.safetensors"
            let transport = FakeTransport(Self.answers())
            transport.set(path, .init(body: Self.weights, breaksAfter: 2100))
            _ = await run(transport, folder)
            transport.set(path, .init(status: 200, body: Self.weights))
            struct NoRanges: Transport {
                let inner: FakeTransport
                func get(_ url: URL, headers: [String: String]) async throws -> Response {
                    try await inner.get(url, headers: headers.filter { $0.key != "Range" })
                }
            }
            let download = ModelDownload(
                id: Self.id, into: folder, by: NoRanges(inner: transport), freeBytes: { _ in nil })
            download.start(token: nil)
            await download.finished()
            #expect(download.phase == .done && download.receivedBytes == download.totalBytes)
        }
    }

    @Test func anotherCommitBeginsAgain() async throws {
        try await withFolder { folder in
            let path = "\(Self.id)/resolve/abc1234/model.safetensors"
            let transport = FakeTransport(Self.answers())
            transport.set(path, .init(body: Self.weights, breaksAfter: 700))
            _ = await run(transport, folder)
            let later = FakeTransport(Self.answers(commit: "def5678"))
            let download = await run(later, folder)
            #expect(download.phase == .done)
            #expect(later.asked.allSatisfy { $0.headers["Range"] == nil })
        }
    }

    @Test func damageIsFoundAndRemoved() async throws {
        try await withFolder { folder in
            let path = "\(Self.id)/resolve/abc1234/model.safetensors"
            var damaged = Self.weights
            damaged[4000] ^= 1
            let transport = FakeTransport(Self.answers())
            transport.set(path, .init(body: damaged))
            let download = await run(transport, folder)
            #expect(download.phase == .failed(DownloadError.damaged(file: "model.safetensors").localizedDescription))
            #expect(ModelLibrary.models(in: folder).isEmpty)
            transport.set(path, .init(body: Self.weights + Data(repeating: 0, count: 9)))
            let second = await run(transport, folder)
            #expect(second.phase == .failed(DownloadError.tooLong(file: "model.safetensors").localizedDescription))
            transport.set(path, .init(body: Self.weights))
            let third = await run(transport, folder)
            #expect(third.phase == .done)
        }
    }

    @Test func aFullDeviceIsToldBeforeAnythingIsFetched() async throws {
        try await withFolder { folder in
            let transport = FakeTransport(Self.answers())
            let download = await run(transport, folder, free: 4000)
            let needed = 5000 + Self.config.count
            #expect(
                download.phase
                    == .failed(DownloadError.noSpace(needed: needed, free: 4000).localizedDescription))
            #expect(!transport.asked.contains { $0.path.contains("resolve") })
        }
    }

    @Test(arguments: [
        (401, DownloadError.notAllowed(id)), (403, .notAllowed(id)), (404, .notFound(id)),
        (429, .tooManyRequests), (503, .status(503)),
    ])
    func whatTheHubRefusesIsASentence(_ status: Int, _ error: DownloadError) async throws {
        try await withFolder { folder in
            let transport = FakeTransport(["api/models/\(Self.id)": .init(status: status)])
            let download = await run(transport, folder)
            #expect(download.phase == .failed(error.localizedDescription))
        }
    }

    @Test(arguments: ["", "tiny", "a/b/c", "../x", "a/..", "a b/c", "https://huggingface.co/a/b", "a/b?x=1"])
    func onlyIdsAreAsked(_ id: String) async throws {
        try await withFolder { folder in
            let transport = FakeTransport([:])
            let download = await run(transport, folder, id: id)
            #expect(download.phase == .failed(DownloadError.notAnId(id).localizedDescription))
            #expect(transport.asked.isEmpty)
        }
    }

    @Test func whatIsNoCheckpointIsNotFetched() async throws {
        try await withFolder { folder in
            var answers = Self.answers()
            answers["api/models/\(Self.id)/tree/abc1234"] = .init(
                body: Data(#"[{"type": "file", "path": "config.json", "size": 3}]"#.utf8))
            let empty = await run(FakeTransport(answers), folder)
            #expect(empty.phase == .failed(DownloadError.noCheckpoint(Self.id).localizedDescription))
            answers["api/models/\(Self.id)/tree/abc1234"] = .init(body: Data("<html>".utf8))
            let foreign = await run(FakeTransport(answers), folder)
            #expect(foreign.phase == .failed(DownloadError.unexpectedAnswer.localizedDescription))
        }
    }

    @Test func aStoppedDownloadKeepsWhatArrived() async throws {
        try await withFolder { folder in
            let transport = FakeTransport(Self.answers())
            let library = ModelLibrary(folder: folder, transport: transport)
            transport.set(
                "\(Self.id)/resolve/abc1234/model.safetensors", .init(body: Self.weights, breaksAfter: 700))
            library.download(" \(Self.id) ", token: nil)
            let download = try #require(library.downloads.first)
            await download.finished()
            #expect(FileManager.default.fileExists(atPath: download.unfinished.path))
            await library.discard(download)
            #expect(library.downloads.isEmpty)
            #expect(!FileManager.default.fileExists(atPath: download.unfinished.path))
        }
    }

    @Test func bytesAreForPeople() {
        #expect([0, 999, 1000, 9_949, 9_951, 999_499, 999_500, 710_000_000, 2_340_000_000].map(\.formattedBytes)
            == ["0 bytes", "999 bytes", "1.0 kB", "9.9 kB", "10 kB", "999 kB", "1.0 MB", "710 MB", "2.3 GB"])
    }
}
