import Foundation
import Testing

@testable import MobileMoE

/// What is wrong with a folder, as one error.
@Suite struct CheckpointTests {
    private func refusal(_ files: [String: [UInt8]]) async throws -> String {
        let folder = try TemporaryFolder(files)
        return await sentence { _ = try CPUEngine(folder: folder.url) }
    }

    /// A file with this header, or with this text as its header, and `data` bytes behind it.
    private func file(_ header: String, data: Int = 0, claims: UInt64? = nil) -> [UInt8] {
        let text = Array(header.utf8)
        return littleEndian(claims ?? UInt64(text.count)) + text + [UInt8](repeating: 0, count: data)
    }

    @Test func aGoodFolderOpens() throws {
        for shards in [false, true] {
            let folder = try TinyCheckpoint().write(shards: shards)
            #expect(try CPUEngine(folder: folder.url).summary.contains("2 layers x 64 in INT4"))
        }
    }

    @Test(arguments: [
        ("[]", 0, "is not a JSON object"),
        ("{\"a\":1}", 0, "'a' lacks dtype, shape or data_offsets"),
        ("{\"a\":{\"dtype\":\"U9\",\"shape\":[],\"data_offsets\":[0,0]}}", 0, "unknown dtype 'U9'"),
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,0]}}", 0, "not a list of sizes"),
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 1, "not a list of sizes"),
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,0]}}", 4, "which are not [begin, end]"),
        ("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "has 4 bytes but its shape [4]"),
        (
            "{\"a\":{\"dtype\":\"F64\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
            "more than 64 bits count"
        ),
        (
            "{\"a\":{\"dtype\":\"U8\",\"shape\":[99999999999999999999],\"data_offsets\":[0,0]}}", 0,
            "not a list of sizes"
        ),
        (
            "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                + "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}", 6,
            "'b' overlaps the tensor before it (begins at 2, expected 4)"
        ),
        (
            "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},"
                + "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[6,10]}}", 10,
            "'b' leaves a gap before it"
        ),
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 3, "truncated: its tensors need 4"),
        ("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 9, "5 bytes follow its last tensor"),
        ("{\"a\":1,\"a\":2}", 0, "has 'a' twice in one object"),
        ("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ is not a table of strings"),
        ("{\"a\":", 0, "is not valid JSON"),
    ])
    func damagedHeaders(_ header: String, _ data: Int, _ why: String) async throws {
        var files = try TinyCheckpoint().files()
        files["model.safetensors"] = file(header, data: data)
        let found = try await refusal(files)
        #expect(found.contains("model.safetensors: ") && found.contains(why), "\(found)")
    }

    @Test func damagedLengths() async throws {
        var files = try TinyCheckpoint().files()
        for (content, why) in [
            (file(String(repeating: "[", count: 100_000)), "levels deep"),
            ([], "0 bytes are too few"), ([1, 2, 3], "3 bytes are too few"),
            (file("{}", claims: .max), "above the format's limit"),
            (file("{}", claims: 100_000_001), "above the format's limit"),
            (file("{}", claims: 100), "truncated inside its header, which needs 108 bytes"),
            (Array(files["model.safetensors"]!.dropLast()), "Download it again"),
        ] {
            files["model.safetensors"] = content
            let found = try await refusal(files)
            #expect(found.contains(why), "\(found)")
        }
    }

    @Test func tensorsThatDoNotFitTheConfig() async throws {
        var tiny = try TinyCheckpoint()
        let norm = tiny.tensors.removeValue(forKey: "model.norm.weight")!
        tiny.tensors["model.nrom.weight"] = norm
        tiny.tensors["model.layers.0.self_attn.q_proj.weight_scale"]!.dtype = "BF16"
        let down = "model.layers.1.feed_forward.experts.down_qweight"
        tiny.tensors[down]!.shape = [32, 5, 32]
        let found = try await refusal(tiny.files())
        for part in [
            "'model.norm.weight' is missing (there is 'model.nrom.weight'?)",
            "'model.nrom.weight' is unexpected (did you mean 'model.norm.weight'?)",
            "q_proj.weight_scale' has the dtype BF16, expected F16",
            "'\(down)' has the shape [32, 5, 32], expected [5, 32, 32]",
        ] {
            #expect(found.contains(part), "\(part) in \(found)")
        }
        tiny = try TinyCheckpoint()
        tiny.config["num_local_experts"] = 6
        let sizes = try await refusal(tiny.files())
        #expect(sizes.contains("config.json says num_local_experts 6, but"), "\(sizes)")
        #expect(sizes.contains("model.layers.{0,1}.feed_forward.expert_bias' has the shape [5]"), "\(sizes)")
    }

    @Test func foldersOfOtherKinds() async throws {
        let nowhere = await sentence { _ = try CPUEngine(folder: URL(fileURLWithPath: "/nowhere")) }
        #expect(nowhere == "There is no folder /nowhere.")
        let ofFile = await sentence { _ = try CPUEngine(folder: URL(fileURLWithPath: #filePath)) }
        #expect(ofFile == "\(#filePath) is a file: give the folder that config.json and *.safetensors are in.")
        let page = await sentence { _ = try CPUEngine(folder: URL(string: "https://host/owner/name")!) }
        #expect(page.hasPrefix("https://host/owner/name is no folder on this device: "))
        let config = try TinyCheckpoint().configBytes()
        let whole = try TinyCheckpoint().files()["model.safetensors"]!
        for (files, why) in [
            (["model.safetensors": whole], "has no config.json: is it a model folder?"),
            (["config.json": config], "the folder has no *.safetensors"),
            (
                ["config.json": config, "pytorch_model.bin": [1]],
                "only pytorch_model.bin: pickles can run code"
            ),
            (["config.json": config, "a.gguf": [1]], "files of llama.cpp are not read"),
            (["config.json": Array("[1]".utf8), "model.safetensors": whole], "is not a JSON object"),
            (
                ["config.json": config, "model.safetensors": Array("version https://git-lfs.github".utf8)],
                "is a pointer of Git LFS, which `git lfs pull` replaces"
            ),
            (
                ["config.json": config, "model-00001-of-00002.safetensors": [], "b.part": [1]],
                "the download is not finished (b.part was begun; model-00001-of-00002.safetensors "
                    + "is empty; model-00002-of-00002.safetensors is missing)"
            ),
        ] as [([String: [UInt8]], String)] {
            let found = try await refusal(files)
            #expect(found.contains(why), "\(found)")
        }
        let bf16 = file("{\"model.norm.weight\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]}}", data: 4)
        let found = try await refusal(["config.json": config, "model.safetensors": bf16])
        #expect(found.contains("is BF16, and the CPU engine computes with INT4 weights: round it first"))
        let mlx = file("{\"model.norm.scales\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}", data: 4)
        let other = try await refusal(["config.json": config, "model.safetensors": mlx])
        #expect(other.contains("is INT4 in MLX's form"))
    }

    @Test func anIndexThatDisagrees() async throws {
        let files = try TinyCheckpoint().files(shards: true)
        let second = "model-00002-of-00002.safetensors"
        let index = "model.safetensors.index.json"
        var changed = files
        changed[second] = nil
        var found = try await refusal(changed)
        #expect(found.contains("\(index) names \(second), which is not in the folder"), "\(found)")
        #expect(found.contains("\(second) is missing). Finish it with the program that began it"))
        changed = files
        changed[index] = Array("{\"weight_map\": {\"a\": 1}}".utf8)
        found = try await refusal(changed)
        #expect(found.contains("is not JSON with a table 'weight_map' of file names"), "\(found)")
        changed[index] = Array("{\"weight_map\": {\"a\": \"../\(second)\"}}".utf8)
        found = try await refusal(changed)
        #expect(found.contains("names ../\(second), which is not in the folder"), "\(found)")
        changed = files
        changed["model.safetensors"] = try TinyCheckpoint().file()
        found = try await refusal(changed)
        #expect(found.contains("does not name model.safetensors, which is there too"), "\(found)")
    }

    @Test func valuesThatAreNotNumbers() async throws {
        for (name, value, why) in [
            ("model.norm.weight", UInt16(0x7FC0), "model.norm.weight has values that are not finite"),
            ("model.layers.1.feed_forward.expert_bias", 0xFF80, "expert_bias has values that are not finite"),
            ("model.layers.0.feed_forward.experts.down_scale", 0x7E00, "1 of 320 scales are NaN, infinite"),
            ("model.embed_tokens.weight_scale", 0x7000, "1 of 192 scales are NaN, infinite or above 8188"),
        ] {
            var tiny = try TinyCheckpoint()
            tiny.tensors[name]!.bytes.replaceSubrange(2..<4, with: littleEndian(value))
            let found = try await refusal(tiny.files())
            #expect(found.contains(why), "\(found)")
        }
    }
}
