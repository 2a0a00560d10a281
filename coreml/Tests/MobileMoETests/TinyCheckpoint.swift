import Foundation

@testable import MobileMoE

/// A checkpoint of the published INT4 layout with random weights, whose sizes differ where one could
/// stand in for another by mistake.
struct TinyCheckpoint {
    var config: [String: Any] = [
        "model_type": "mobilemoe", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 32,
        "intermediate_size_mlp": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "num_local_experts": 5,
        "num_experts_per_tok": 2, "routed_scaling_factor": 2.5, "eos_token_id": [2],
        "quantization": ["format": "mobilemoe-int4-g32", "group_size": 32],
    ]
    var tensors: [String: (dtype: String, shape: [Int], bytes: [UInt8])] = [:]

    init(seed: UInt64 = 1) throws {
        var random = SplitMix64(state: seed)
        for (name, expected) in try configuration().expectedTensors.sorted(by: { $0.key < $1.key }) {
            let count = expected.shape.reduce(1, *)
            let type = expected.dtypes[0]
            var bytes: [UInt8] = []
            for _ in 0..<count {
                let uniform = Float(random.uniform())
                switch type {
                case "U8": bytes.append(UInt8(truncatingIfNeeded: random.next()))
                case "F16": bytes += littleEndian(halfBits(0.01 + 0.02 * uniform))
                case "BF16":
                    let value = name.hasSuffix("norm.weight") ? 0.5 + uniform : 0.1 * uniform
                    bytes += littleEndian(UInt16(value.bitPattern >> 16))
                default: bytes += littleEndian((uniform - 0.5).bitPattern)
                }
            }
            tensors[name] = (type, expected.shape, bytes)
        }
    }

    func configuration() throws -> ModelConfiguration {
        try ModelConfiguration(JSON.parse(configBytes()).object!)
    }

    func configBytes() throws -> [UInt8] {
        Array(try JSONSerialization.data(withJSONObject: config, options: [.sortedKeys]))
    }

    /// A safetensors file of those tensors that `chosen` says.
    func file(_ chosen: (String) -> Bool = { _ in true }) throws -> [UInt8] {
        var header: [String: Any] = ["__metadata__": ["format": "pt"]]
        var data: [UInt8] = []
        for (name, tensor) in tensors.sorted(by: { $0.key < $1.key }) where chosen(name) {
            header[name] = [
                "dtype": tensor.dtype, "shape": tensor.shape,
                "data_offsets": [data.count, data.count + tensor.bytes.count],
            ]
            data += tensor.bytes
        }
        let text = Array(try JSONSerialization.data(withJSONObject: header, options: [.sortedKeys]))
        return littleEndian(UInt64(text.count)) + text + data
    }

    /// The folder's files, in one piece or in two with an index.
    func files(shards: Bool = false) throws -> [String: [UInt8]] {
        guard shards else {
            return ["config.json": try configBytes(), "model.safetensors": try file()]
        }
        let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        func home(_ tensor: String) -> String { names[tensor.contains("layers.1.") ? 1 : 0] }
        let map = Dictionary(uniqueKeysWithValues: tensors.keys.map { ($0, home($0)) })
        let index = try JSONSerialization.data(withJSONObject: ["weight_map": map])
        return [
            "config.json": try configBytes(), "model.safetensors.index.json": Array(index),
            names[0]: try file { home($0) == names[0] }, names[1]: try file { home($0) == names[1] },
        ]
    }

    func write(shards: Bool = false) throws -> TemporaryFolder {
        try TemporaryFolder(files(shards: shards))
    }
}

/// A folder that goes with its object.
final class TemporaryFolder: Sendable {
    let url: URL

    init(_ files: [String: [UInt8]] = [:]) throws {
        url = FileManager.default.temporaryDirectory
            .appendingPathComponent("mobilemoe-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        for (name, content) in files { try write(content, name) }
    }

    deinit { try? FileManager.default.removeItem(at: url) }

    func write(_ content: [UInt8], _ name: String) throws {
        try Data(content).write(to: url.appendingPathComponent(name))
    }
}

func littleEndian(_ value: some FixedWidthInteger) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
}

/// The bits of the float16 below a positive, normal `value`.
func halfBits(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    return UInt16((bits >> 23) - 112) << 10 | UInt16(bits >> 13 & 0x3FF)
}

/// The sentence that `work` throws.
func sentence(_ work: () async throws -> Void) async -> String {
    do {
        try await work()
        return "nothing was thrown"
    } catch let error as MobileMoEError {
        return error.sentence
    } catch {
        return "\(type(of: error))"
    }
}
