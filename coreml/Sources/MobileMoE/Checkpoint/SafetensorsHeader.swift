import Foundation

/// A tensor as a file's header describes it.
package struct StoredTensor: Sendable, Equatable {
    package let dtype: String  // the format's name of it
    package let shape: [Int]
    package let path: String
    package let offset: Int  // of its first byte in the file
    package let byteCount: Int
}

/// Why a file is not whole, valid safetensors, one sentence each without its full stop.
package struct DamagedFile: Error, Equatable {
    package let problems: [String]
}

/// The header of a safetensors file, which is not trusted.
///
/// A file is 8 bytes (header length, little endian), a JSON header, the tensors' bytes without gaps.
package struct SafetensorsHeader: Sendable {
    package let tensors: [String: StoredTensor]
    package let metadata: [String: String]

    /// The format's own limit.
    static let mostBytes = 100_000_000

    /// Format name -> bytes per element (the format's list of types).
    static let itemBytes = [
        "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
        "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
        "U64": 8, "I64": 8, "F64": 8, "C64": 8,
    ]

    /// Reads and checks the header of the file at `path`; no tensor is read.
    ///
    /// Throws DamagedFile with all that is wrong: a length beyond the file or the format's limit,
    /// broken JSON, unknown types, offsets that overlap, leave gaps, contradict the shapes or end
    /// elsewhere than the file does; and MobileMoEError for a file that cannot be read.
    package static func read(_ path: String) throws -> SafetensorsHeader {
        let file = try OpenFile(path)
        let size = try file.size()
        let name = (path as NSString).lastPathComponent
        let start = try file.bytes(8, at: 0)
        guard start.count == 8 else {
            throw DamagedFile(problems: [
                "\(name): \(size) bytes are too few for a safetensors file"
            ])
        }
        let claimed = start.enumerated().reduce(UInt64(0)) { $0 | UInt64($1.element) << (8 * $1.offset) }
        guard claimed <= UInt64(mostBytes) else {
            throw DamagedFile(problems: [
                "\(name): its header claims \(claimed) bytes, above the format's limit of "
                    + "\(mostBytes): not a safetensors file"
            ])
        }
        let length = Int(claimed)
        let truncated = DamagedFile(problems: [
            "\(name): truncated inside its header, which needs \(8 + length) bytes of a file that "
                + "has \(size)"
        ])
        guard 8 + length <= size else { throw truncated }
        let text = try file.bytes(length, at: 8)
        guard text.count == length else { throw truncated }  // it became shorter just now
        do {
            return try parse(text, path: path, name: name, available: size - 8 - length)
        } catch let error as JSONError {
            throw DamagedFile(problems: ["\(name): its header \(error.what)"])
        }
    }

    private static func parse(
        _ text: [UInt8], path: String, name file: String, available: Int
    ) throws -> SafetensorsHeader {
        guard let content = try JSON.parse(text).object else {
            throw DamagedFile(problems: ["\(file): its header is not a JSON object"])
        }
        var problems: [String] = []
        var metadata: [String: String] = [:]
        var entries: [(name: String, entry: Entry)] = []
        for (name, value) in content.entries {
            if name == "__metadata__" {
                if let table = strings(value) {
                    metadata = table
                } else {
                    problems.append("\(file): __metadata__ is not a table of strings")
                }
                continue
            }
            do {
                entries.append((name, try Entry(value)))
            } catch {
                problems.append("\(file): '\(name)' \(error.why)")
            }
        }
        if problems.isEmpty {
            problems = offsetProblems(file, entries, available: available)
        }
        guard problems.isEmpty else { throw DamagedFile(problems: problems) }
        let data = 8 + text.count
        var tensors: [String: StoredTensor] = [:]
        for (name, entry) in entries {
            // Names that Swift holds for the same text though their bytes differ.
            guard tensors[name] == nil else {
                throw DamagedFile(problems: ["\(file): '\(name)' is in its header twice"])
            }
            tensors[name] = StoredTensor(
                dtype: entry.dtype, shape: entry.shape, path: path, offset: data + entry.begin,
                byteCount: entry.end - entry.begin)
        }
        return SafetensorsHeader(tensors: tensors, metadata: metadata)
    }

    private static func strings(_ value: JSON) -> [String: String]? {
        if value.isNull { return [:] }
        guard let object = value.object else { return nil }
        var table: [String: String] = [:]
        for (key, value) in object.entries {
            guard let text = value.string else { return nil }
            table[key] = text
        }
        return table
    }

    private static func offsetProblems(
        _ file: String, _ entries: [(name: String, entry: Entry)], available: Int
    ) -> [String] {
        var problems: [String] = []
        var position = 0
        let inOrder = entries.sorted { ($0.entry.begin, $0.entry.end) < ($1.entry.begin, $1.entry.end) }
        for (name, entry) in inOrder {
            if entry.begin != position {
                let what =
                    entry.begin < position
                    ? "overlaps the tensor before it" : "leaves a gap before it"
                problems.append(
                    "\(file): '\(name)' \(what) (begins at \(entry.begin), expected \(position))")
            }
            position = max(position, entry.end)
        }
        if position > available {
            problems.append(
                "\(file): truncated: its tensors need \(position) bytes, the file has \(available). "
                    + "Download it again")
        } else if position < available {
            problems.append("\(file): \(available - position) bytes follow its last tensor")
        }
        return problems
    }
}

private struct Entry {
    struct Problem: Error { let why: String }

    let dtype: String
    let shape: [Int]
    let begin, end: Int

    init(_ value: JSON) throws(Problem) {
        guard let object = value.object, let type = object["dtype"], let sizes = object["shape"],
            let offsets = object["data_offsets"]
        else { throw Problem(why: "lacks dtype, shape or data_offsets") }
        guard let dtype = type.string, let itemBytes = SafetensorsHeader.itemBytes[dtype] else {
            throw Problem(why: "has the unknown dtype \(type.shown)")
        }
        guard let shape = wholeNumbers(sizes) else {
            throw Problem(why: "has the shape \(sizes.shown), which is not a list of sizes")
        }
        guard let places = wholeNumbers(offsets), places.count == 2, places[0] <= places[1] else {
            throw Problem(why: "has the data_offsets \(offsets.shown), which are not [begin, end]")
        }
        (self.dtype, self.shape, begin, end) = (dtype, shape, places[0], places[1])
        guard byteCount(shape, itemBytes) == end - begin else {
            throw Problem(
                why: "has \(end - begin) bytes but its shape \(sizes.shown) of \(dtype) needs "
                    + (byteCount(shape, itemBytes).map(String.init) ?? "more than 64 bits count"))
        }
    }
}

private func wholeNumbers(_ value: JSON) -> [Int]? {
    guard let items = value.array else { return nil }
    let numbers = items.compactMap { $0.integer }
    return numbers.count == items.count && numbers.allSatisfy { $0 >= 0 } ? numbers : nil
}

/// Nil where 64 bits do not count them.
private func byteCount(_ shape: [Int], _ itemBytes: Int) -> Int? {
    if shape.contains(0) { return 0 }
    var count = itemBytes
    for size in shape {
        let (product, overflow) = count.multipliedReportingOverflow(by: size)
        if overflow { return nil }
        count = product
    }
    return count
}
