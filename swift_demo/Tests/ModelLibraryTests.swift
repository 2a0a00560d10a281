import Foundation
import Testing

@testable import DemoViewModels

@MainActor
struct ModelLibraryTests {
    func write(_ path: String, in folder: URL, _ bytes: Int = 2) throws {
        let url = folder.appending(path: path)
        try FileManager.default.createDirectory(at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
        try Data(repeating: 0x20, count: bytes).write(to: url)
    }

    @Test func modelsAreFoundByTheirForm() async throws {
        try await withFolder { folder in
            try write("B/config.json", in: folder)
            try write("B/model.safetensors", in: folder, 100)
            try write("A.mlpackage/Manifest.json", in: folder)
            try write("A-resources/manifest.json", in: folder)
            try write("A.mlmodelc/model.mil", in: folder)  // compiled from the package
            try write("C.mlpackage/Manifest.json", in: folder)  // its resources are missing
            try write("D.download/config.json", in: folder)
            try write("notes/a.txt", in: folder)
            let library = ModelLibrary(folder: folder, transport: FakeTransport([:]))
            library.refresh()
            #expect(library.entries.map(\.name) == ["A", "B"])
            #expect(library.entries.map(\.engines) == [[.coreML], [.cpu, .mlx]])
            #expect(library.entries.map(\.bytes) == [4, 102])
            library.remove(library.entries[0])
            #expect(library.entries.map(\.name) == ["B"])
            #expect(!FileManager.default.fileExists(atPath: folder.appending(path: "A-resources").path))
        }
    }

    @Test func filesAreAddedWholeOrNotAtAll() async throws {
        try await withFolder { folder in
            let (from, to) = (folder.appending(path: "from"), folder.appending(path: "to"))
            try write("X.mlpackage/Manifest.json", in: from)
            try write("X-resources/manifest.json", in: from)
            try write("letters/a.txt", in: from)
            try FileManager.default.createDirectory(at: to, withIntermediateDirectories: true)
            let library = ModelLibrary(folder: to, transport: FakeTransport([:]))
            await library.add([from.appending(path: "letters")])
            #expect(library.problem?.contains("letters: no model") == true)
            try #expect(FileManager.default.contentsOfDirectory(atPath: to.path).isEmpty)
            let both = ["X.mlpackage", "X-resources"].map { from.appending(path: $0) }
            await library.add(both)
            #expect(library.problem == nil && library.entries.map(\.name) == ["X"])
            await library.add(both)
            #expect(library.problem?.contains("already") == true && library.entries.count == 1)
        }
    }
}
