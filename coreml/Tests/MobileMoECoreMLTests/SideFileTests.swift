import CoreML
import Foundation
import Metal
@testable import MobileMoE
import Testing

@testable import MobileMoECoreML
@testable import MobileMoELayers

extension LayerTests {
    /// Weights beside the package, and the checksums that find them.
    @Suite final class SideFileTests {
        private let golden = try! Golden("experts")
        private let folder = FileManager.default.temporaryDirectory
            .appendingPathComponent("side-\(UUID().uuidString)")
        private var parameters: [String: Any]
        private let sha256: String
        private var file: URL { folder.appendingPathComponent("weights.bin") }

        init() throws {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            var bytes = Data(), places: [String: Any] = [:]
            for (name, data) in golden.entries() {
                places["\(name)_offset"] = bytes.count
                places["\(name)_bytes"] = data.count
                bytes += data
                bytes += Data(count: -bytes.count & 16383)
            }
            sha256 = bytes.withUnsafeBytes { SHA256Sum.of($0) }
            places["weights_file"] = "weights.bin"
            places["weights_bytes"] = "\(bytes.count)"
            places["weights_sha256"] = sha256
            parameters = golden.parameters.merging(places) { $1 }
            try bytes.write(to: folder.appendingPathComponent("weights.bin"))
        }

        deinit { try? FileManager.default.removeItem(at: folder) }

        private func told(_ changes: [String: Any]) -> String {
            do {
                _ = try MobileMoEExperts(parameters: parameters.merging(changes) { $1 })
                return "nothing was thrown"
            } catch {
                return "\(error)"
            }
        }

        private static let ways = (try? GPU.shared()) == nil ? [false] : [false, true]

        @Test(arguments: ways) func aLayerReadsThem(onGPU: Bool) throws {
            LayerOptions.current.expertsOnGPU = onGPU
            defer { LayerOptions.current.expertsOnGPU = false }
            try SideFile.register(file, sha256: sha256.uppercased(), checking: true)
            let layer = try MobileMoEExperts(parameters: parameters)
            try layer.setWeightData([])
            #expect(throws: MobileMoEError.self) { try layer.setWeightData([Data()]) }
            #if os(Linux)
                SerialDevice.uncopied = 0
            #endif
            let input = golden.input("block", "residual")
            let out = try MLMultiArray(nothing: [5, 64])
            try layer.evaluate(inputs: [MLMultiArray(input.floats, input.shape)], outputs: [out])
            #expect(difference(out.floats, golden.output("block", "residual").floats) < 1e-5)
            #if os(Linux)
                #expect(SerialDevice.uncopied == (onGPU ? 13 : 0))
            #endif
        }

        @Test func aFileThatBecameShorterIsNotRead() throws {
            try SideFile.register(file, sha256: sha256)
            let layer = try MobileMoEExperts(parameters: parameters)
            let input = golden.input("decode", "residual"), out = try MLMultiArray(nothing: [1, 64])
            let handle = try FileHandle(forWritingTo: file)
            try handle.truncate(atOffset: 16384)
            #expect(throws: MobileMoEError.self) {
                try layer.evaluate(inputs: [MLMultiArray(input.floats, input.shape)], outputs: [out])
            }
        }

        @Test func whatIsWrongIsSaid() throws {
            let unknown = told(["weights_sha256": String(repeating: "0", count: 64)])
            #expect(unknown.contains("the app has not said where: call SideFile.register"))
            try SideFile.register(file, sha256: sha256)
            #expect(told(["weights_bytes": 16384]).contains("instead of 16384. Copy it again."))
            #expect(told(["router_offset": 4096]).contains("'router' lies at byte 4096 of 'weights.bin'"))
            #expect(told(["router_offset": -16384]).contains("not wholly inside"))
            #expect(told(["router_offset": 1 << 40]).contains("not wholly inside"))
            #expect(told(["router_bytes": 4]).contains("'router' has 4 bytes in 'weights.bin' instead of 1792"))
            #expect(throws: MobileMoEError.self) { try SideFile.register(file, sha256: "abc") }
            try Data("short".utf8).write(to: file)
            do {
                try SideFile.register(file, sha256: sha256, checking: true)
                Issue.record("nothing was thrown")
            } catch let error as MobileMoEError {
                #expect(error.sentence.contains("is damaged or of another model"))
            }
        }

        /// NIST's examples, and lengths about a block's end; the portable code, whatever the system has.
        @Test func sha256OfKnownTexts() {
            func sum(_ pieces: [String]) -> String {
                var hash = PortableSHA256()
                for piece in pieces { Data(piece.utf8).withUnsafeBytes { hash.update($0) } }
                return SHA256Sum.hexadecimal(hash.finish())
            }
            let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
            #expect(sum(["abc"]) == abc && sum(["a", "", "bc"]) == abc)
            #expect(sum([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
            let two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"
            #expect(sum([two]) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1")
            // However a text is cut, about the ends of blocks too.
            for length in [55, 56, 63, 64, 65, 119, 120, 200] {
                let text = String(repeating: "b", count: length)
                #expect(sum([text]) == sum(text.map { String($0) }))
            }
        }
    }
}
