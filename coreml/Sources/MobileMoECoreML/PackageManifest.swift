import Foundation
import MobileMoE

/// What manifest.json of a package's resources folder says of it.
struct PackageManifest {
    enum Form: String {
        /// An ML Program with the functions `prefill` and `decode`, whose caches are Core ML's state.
        case program = "core-ops"
        /// A network of custom layers, whose caches are the app's.
        case customLayers = "custom-layer"
    }

    let form: Form
    /// Tokens of prompt and answer together.
    let context: Int
    /// Tokens of one call, at most.
    let block: Int
    /// Whether a call of many tokens returns the scores after each of them, or after the last.
    let allLogits: Bool
    let endOfAnswer: Set<Int>
    let vocabularySize: Int
    /// Of the arrays of keys and values: layers, heads, positions, features.
    let cacheShape: [Int]
    let weightBytes: Int
    let cacheBytes: Int
    /// Of weights.bin beside the package, where there is one.
    let sideFileSHA256: String?

    init(_ folder: URL) throws {
        let path = folder.appendingPathComponent("manifest.json").path
        let json = Reader(try readJSON(path), path, [])
        let (format, version) = try (json["format"].text, json["version"].number)
        guard format == "mobilemoe-coreml", version == 1 else {
            throw MobileMoEError(
                .checkpoint,
                "\(path) is '\(format)' of version \(version), and this code reads 'mobilemoe-coreml' of "
                    + "version 1: export the model anew, or take the code that came with its exporter.")
        }
        let name = try json["form"].text
        guard let form = Form(rawValue: name) else {
            throw MobileMoEError(.checkpoint, "\(path): the form '\(name)' is unknown here.")
        }
        self.form = form
        context = try json["context"].number
        block = try json["prefill_block"].number
        allLogits = try json["logits"].text == "all"
        endOfAnswer = try Set(json["tokens"]["eos"].numbers)
        let function = json["functions"][form == .program ? "prefill" : "main"]
        let caches = function[form == .program ? "states" : "inputs"]
        vocabularySize = try function["outputs"]["logits"]["shape"].numbers.last ?? 0
        cacheShape = try caches["key_cache"]["shape"].numbers
        weightBytes = try json["sizes"]["weights"].number
        cacheBytes = try json["sizes"]["key_value_cache"].number
        sideFileSHA256 = try? json["files"]["\(folder.lastPathComponent)/weights.bin"]["sha256"].text
        guard block >= 1, context >= block, vocabularySize >= 1, cacheShape.count == 4,
            cacheShape.allSatisfy({ $0 >= 1 }), cacheShape[2] == context
        else { throw MobileMoEError(.checkpoint, "\(path): its sizes contradict each other.") }
    }
}

/// A place in a JSON file, for sentences.
private struct Reader {
    private let value: JSON?
    private let path: String
    private let place: [String]

    init(_ value: JSON?, _ path: String, _ place: [String]) {
        (self.value, self.path, self.place) = (value, path, place)
    }

    subscript(key: String) -> Reader { Reader(value?.object?[key], path, place + [key]) }

    var text: String { get throws { try need(value?.string, "a text") } }
    var number: Int { get throws { try need(value?.integer, "a whole number") } }
    var numbers: [Int] {
        get throws {
            try need(value?.array, "a list of whole numbers").map {
                try need($0.integer, "a list of whole numbers")
            }
        }
    }

    private func need<Value>(_ value: Value?, _ kind: String) throws -> Value {
        guard let value else {
            throw MobileMoEError(
                .checkpoint,
                "\(path): '\(place.joined(separator: "."))' is missing, or not \(kind). Export the model anew.")
        }
        return value
    }
}
