import Foundation

/// A file of coreml/golden: tensors by name, and what its metadata says (coreml/README.md, section 9).
struct Golden {
    struct Tensor {
        let type: String
        let shape: [Int]
        let data: Data

        var floats: [Float] {
            data.withUnsafeBytes { bytes in
                (0..<bytes.count / 4).map { bytes.loadUnaligned(fromByteOffset: 4 * $0, as: Float.self) }
            }
        }
    }

    let tensors: [String: Tensor]
    let parameters: [String: Any]
    let cases: [String]

    static let folder = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().appendingPathComponent("../../golden").standardizedFileURL

    init(_ name: String) throws {
        let file = try Data(contentsOf: Self.folder.appendingPathComponent("\(name).safetensors"))
        let length = file.prefix(8).enumerated().reduce(0) { $0 | Int($1.element) << (8 * $1.offset) }
        var header = try JSONSerialization.jsonObject(with: file[8..<8 + length]) as! [String: Any]
        let metadata = header.removeValue(forKey: "__metadata__") as! [String: String]
        func object(_ key: String) throws -> [String: Any] {
            try JSONSerialization.jsonObject(with: Data(metadata[key]!.utf8)) as! [String: Any]
        }
        parameters = try object("parameters")
        cases = try object("cases").keys.sorted()
        tensors = header.mapValues { value in
            let value = value as! [String: Any]
            let (begin, end) = ((value["data_offsets"] as! [Int])[0], (value["data_offsets"] as! [Int])[1])
            return Tensor(
                type: value["dtype"] as! String, shape: value["shape"] as! [Int],
                data: Data(file[8 + length + begin..<8 + length + end]))
        }
    }

    /// Entries "weights.I.NAME", or "table.I.NAME", by I.
    func entries(_ kind: String = "weights") -> [(name: String, data: Data)] {
        tensors.compactMap { key, tensor -> (Int, String, Data)? in
            let parts = key.split(separator: ".")
            guard parts[0] == kind else { return nil }
            return (Int(parts[1])!, String(parts[2]), tensor.data)
        }.sorted { $0.0 < $1.0 }.map { ($0.1, $0.2) }
    }

    func input(_ case: String, _ name: String) -> Tensor {
        tensors["\(`case`).inputs.\(name)"] ?? tensors["all.inputs.\(name)"]!
    }

    func output(_ case: String, _ name: String) -> Tensor { tensors["\(`case`).outputs.\(name)"]! }
}

/// The largest difference, relative to the largest golden value.
func difference(_ values: [Float], _ golden: [Float]) -> Float {
    guard values.count == golden.count, values.allSatisfy(\.isFinite) else { return .infinity }
    let largest = golden.map(abs).max() ?? 0
    return zip(values, golden).map { abs($0 - $1) }.max()! / max(largest, .leastNormalMagnitude)
}
