import Foundation

/// A folder whose config.json and tensors fit together; of the tensors nothing has been read.
///
/// Only config.json, the index and the headers of *.safetensors are read. Pickles never are.
package struct Checkpoint: Sendable {
    package let folder: String
    package let configuration: ModelConfiguration
    package let tensors: [String: StoredTensor]

    static let indexFile = "model.safetensors.index.json"

    /// Throws one error that lists all that is wrong: truncated or damaged files, missing and
    /// unexpected tensors, wrong shapes and types, an index that disagrees with the files, a
    /// config.json that contradicts the tensors, weights that are not published INT4.
    package init(_ url: URL) throws {
        folder = url.path
        guard url.isFileURL || url.scheme == nil else {
            throw MobileMoEError(
                .checkpoint,
                "\(url.absoluteString) is no folder on this device: download the model, and give "
                    + "the folder of its files.")
        }
        switch fileKind(folder) {
        case .folder: break
        case .file:
            throw MobileMoEError(
                .checkpoint,
                "\(folder) is a file: give the folder that config.json and *.safetensors are in.")
        default: throw MobileMoEError(.checkpoint, "There is no folder \(folder).")
        }
        var problems: [String] = []
        var configuration: ModelConfiguration?
        do {
            configuration = try ModelConfiguration.read(folder)
        } catch let error as MobileMoEError {
            problems.append(withoutStop(error.sentence))
        }
        var found = FoundTensors(folder)
        found.read()
        problems += found.problems
        if let links = UnfinishedDownload.linksToNothing(folder) { problems.append(links) }
        if let configuration, !found.tensors.isEmpty {
            if let other = Self.otherLayout(found.tensors.keys, folder) {
                throw MobileMoEError(.checkpoint, other)
            }
            problems += Self.problems(configuration, found)
        }
        guard problems.isEmpty, let configuration else {
            if let why = UnfinishedDownload.signs(folder) { problems.insert(why, at: 0) }
            throw Self.error(folder, problems)
        }
        self.configuration = configuration
        tensors = found.tensors
    }

    static func error(_ folder: String, _ problems: [String]) -> MobileMoEError {
        let lines = foldedLayers(problems).map { "\n  - \($0)" }.joined()
        return MobileMoEError(.checkpoint, "\(folder) cannot be used:\(lines)")
    }

    /// What to say of weights that this package does not run.
    private static func otherLayout(_ names: some Sequence<String>, _ folder: String) -> String? {
        let leaves = names.map { $0.split(separator: ".").last ?? "" }
        if leaves.contains(where: { $0.hasSuffix("qweight") }) { return nil }
        if leaves.contains("scales") {
            return "\(folder) is INT4 in MLX's form, which this package does not read: make a "
                + "published folder of it with `mobilemoe convert \(folder) OUTPUT`."
        }
        return "\(folder) is BF16, and the CPU engine computes with INT4 weights: round it first, "
            + "with `mobilemoe convert \(folder) OUTPUT --quantize`."
    }

    private static func problems(
        _ configuration: ModelConfiguration, _ found: FoundTensors
    ) -> [String] {
        var problems: [String] = []
        if !configuration.isQuantized {
            problems.append(
                "the tensors are packed INT4, but config.json has no quantization block: the "
                    + "config or the tensors belong to another checkpoint")
        }
        let names = found.tensors.keys.sorted()
        for (field, value, ending, axis) in configuration.sizesOfTensors {
            guard let name = names.first(where: { $0.hasSuffix(ending) }),
                let shape = found.tensors[name]?.shape, axis < shape.count, shape[axis] != value
            else { continue }
            problems.append("config.json says \(field) \(value), but \(name) has \(shape[axis])")
        }
        let expected = configuration.expectedTensors
        let missing = expected.keys.sorted().filter {
            found.tensors[$0] == nil && !found.unreadable.contains($0)
        }
        let unexpected = names.filter { expected[$0] == nil }
        if !found.isIncomplete {
            problems += missing.map { "'\($0)' is missing\(near($0, unexpected, "there is"))" }
        }
        problems += unexpected.map { "'\($0)' is unexpected\(near($0, missing, "did you mean"))" }
        for name in names {
            guard let wanted = expected[name], let tensor = found.tensors[name] else { continue }
            if tensor.shape != wanted.shape {
                problems.append("'\(name)' has the shape \(tensor.shape), expected \(wanted.shape)")
            }
            if !wanted.dtypes.contains(tensor.dtype) {
                problems.append(
                    "'\(name)' has the dtype \(tensor.dtype), expected "
                        + wanted.dtypes.joined(separator: " or "))
            }
        }
        return problems
    }

    /// Names of other layers cannot be what was meant, and comparing with all of them is slow.
    private static func near(_ name: String, _ candidates: [String], _ words: String) -> String {
        let layer = layerNumber(name)?.digits
        let same = candidates.lazy.filter { layerNumber($0)?.digits == layer }.prefix(64)
        return didYouMean(name, same, words: words)
    }

    /// Sentences that differ only in their layer's number, together: `model.layers.{0,1,2}.`
    static func foldedLayers(_ problems: [String]) -> [String] {
        var order: [String] = []
        var layers: [String: [Substring]] = [:]
        for problem in problems {
            let found = layerNumber(problem)
            let pattern = found.map { "\($0.before)\0\($0.after)" } ?? problem
            if layers[pattern] == nil { order.append(pattern) }
            layers[pattern, default: []] += found.map { [$0.digits] } ?? []
        }
        return order.map { pattern in
            let which = layers[pattern]!
            let text = which.count == 1 ? String(which[0]) : "{\(which.joined(separator: ","))}"
            return pattern.replacingOccurrences(of: "\0", with: text)
        }
    }

    private static func layerNumber(
        _ text: String
    ) -> (before: Substring, digits: Substring, after: Substring)? {
        guard let place = text.range(of: "model.layers.") else { return nil }
        let rest = text[place.upperBound...]
        let digits = rest.prefix { ("0"..."9").contains($0) }
        guard !digits.isEmpty, rest[digits.endIndex...].first == "." else { return nil }
        return (text[..<place.upperBound], digits, rest[digits.endIndex...])
    }
}

/// What reading the headers of a folder gave.
private struct FoundTensors {
    let folder: String
    var tensors: [String: StoredTensor] = [:]
    var problems: [String] = []
    var unreadable: Set<String> = []  // tensors of absent or damaged files
    var isIncomplete = false  // a file could not be read and nothing says what was in it

    init(_ folder: String) { self.folder = folder }

    mutating func read() {
        let index = weightMap()
        let present = visibleFiles(folder).filter { $0.hasSuffix(".safetensors") }
        let names = index.map { Set($0.values).sorted() } ?? present
        if index != nil {
            for name in present where name.hasPrefix("model") && !names.contains(name) {
                problems.append("\(Checkpoint.indexFile) does not name \(name), which is there too")
            }
        }
        if names.isEmpty, problems.isEmpty {
            let others = foreignFiles(folder).map { ", only \($0)" } ?? ""
            problems.append("the folder has no *.safetensors\(others)")
        }
        var homes: [String: String] = [:]  // tensor -> its file
        for file in names {
            let mapped = Set((index ?? [:]).filter { $0.value == file }.keys)
            let path = "\(folder)/\(file)"
            guard (file as NSString).lastPathComponent == file, fileKind(path) == .file else {
                problems.append(
                    index == nil
                        ? "\(file) is not a file"
                        : "\(Checkpoint.indexFile) names \(file), which is not in the folder")
                unreadable.formUnion(mapped)
                isIncomplete = isIncomplete || index == nil
                continue
            }
            let header: SafetensorsHeader
            do {
                header = try SafetensorsHeader.read(path)
            } catch {
                problems +=
                    (error as? DamagedFile)?.problems
                    ?? [withoutStop((error as? MobileMoEError)?.sentence ?? "\(error)")]
                unreadable.formUnion(mapped)
                isIncomplete = isIncomplete || index == nil
                continue
            }
            for (name, tensor) in header.tensors.sorted(by: { $0.key < $1.key }) {
                if let home = homes[name] {
                    problems.append("'\(name)' is in \(home) and again in \(file)")
                } else if let index, index[name] != file {
                    let says = index[name].map { "says \($0)" } ?? "does not name it"
                    problems.append("'\(name)' is in \(file), but \(Checkpoint.indexFile) \(says)")
                }
                homes[name] = file
                tensors[name] = tensor
            }
            for name in mapped.subtracting(header.tensors.keys).sorted() {
                problems.append(
                    "\(Checkpoint.indexFile) says '\(name)' is in \(file), but it is not")
                unreadable.insert(name)
            }
        }
    }

    /// Tensor -> file, of the index; nil without one.
    private mutating func weightMap() -> [String: String]? {
        let path = "\(folder)/\(Checkpoint.indexFile)"
        guard fileKind(path) != .nothing else { return nil }
        do {
            if let table = try readJSON(path).object?["weight_map"]?.object {
                var map: [String: String] = [:]
                for (name, value) in table.entries { map[name] = value.string }
                if map.count == table.entries.count { return map }
            }
            problems.append(
                "\(Checkpoint.indexFile) is not JSON with a table 'weight_map' of file names")
        } catch {
            problems.append(withoutStop((error as? MobileMoEError)?.sentence ?? "\(error)"))
        }
        isIncomplete = true
        return [:]
    }
}

func withoutStop(_ sentence: String) -> String {
    sentence.hasSuffix(".") ? String(sentence.dropLast()) : sentence
}
