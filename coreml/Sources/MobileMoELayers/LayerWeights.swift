import Foundation
import MobileMoE

/// One entry of a layer's `weights`, as the contract lists it.
struct LayerEntry {
    let name: String
    let bytes: Int

    static func floats(_ name: String, _ count: Int) -> LayerEntry {
        LayerEntry(name: name, bytes: count * 4)
    }
}

/// Bytes of somebody else's, kept alive for as long as this is.
public struct WeightBytes: @unchecked Sendable {  // nobody changes weights after loading
    public let start: UnsafeRawPointer
    public let count: Int
    /// Whether they begin at a page of a mapped file, so that a GPU may take them where they are.
    public let beginsAtPage: Bool
    private let owner: AnyObject

    init(_ data: Data) {
        // NSData's bytes stay where they are; those of a Data only during a call. Of what Core ML
        // hands over no copy is made.
        let owner = data as NSData
        start = owner.bytes
        count = owner.length
        beginsAtPage = false
        self.owner = owner
    }

    init(_ file: MappedFile, _ range: Range<Int>) {
        start = file.bytes.baseAddress! + range.lowerBound
        count = range.count
        beginsAtPage = true
        owner = file
    }
}

/// Where a layer's weights come from: `setWeightData`, or a side file that its parameters name.
final class LayerWeights: @unchecked Sendable {  // filled while the model loads, then only read
    private let entries: [LayerEntry]
    private let parameters: LayerParameters
    private let isBeside: Bool
    private var found: [String: WeightBytes] = [:]
    private var file: MappedFile?

    init(_ entries: [LayerEntry], _ parameters: LayerParameters) throws {
        self.entries = entries
        self.parameters = parameters
        isBeside = parameters.has("weights_file")
        if isBeside, !entries.isEmpty { try readSideFile() }
    }

    var isComplete: Bool { found.count == entries.count }

    func set(_ data: [Data]) throws {
        if isBeside || entries.isEmpty {
            guard data.isEmpty else {
                throw parameters.error("it was given \(data.count) weights and takes none.")
            }
            return
        }
        guard data.count == entries.count else {
            throw parameters.error(
                "it was given \(data.count) weights and takes \(entries.count).")
        }
        for (entry, data) in zip(entries, data) {
            guard data.count == entry.bytes else {
                throw parameters.error(
                    "its weight '\(entry.name)' has \(data.count) bytes instead of \(entry.bytes). "
                        + "Export the model with --weights-beside.")
            }
        }
        for (entry, data) in zip(entries, data) { found[entry.name] = WeightBytes(data) }
    }

    /// Throws where they cannot be read now: not given, or a side file that became shorter.
    func check() throws {
        guard isComplete else { throw parameters.error("it was not given its weights.") }
        try file?.check()
    }

    subscript(name: String) -> WeightBytes {
        get throws {
            guard let bytes = found[name] else {
                throw parameters.error("it was not given its weights.")
            }
            return bytes
        }
    }

    private func readSideFile() throws {
        let name = try parameters.text("weights_file")
        let size = try parameters.whole("weights_bytes")
        let file = try SideFile.mapped(sha256: parameters.text("weights_sha256"), name: name)
        self.file = file
        guard file.bytes.count == size else {
            throw parameters.error(
                "'\(file.path)' has \(file.bytes.count) bytes instead of \(size). Copy it again.")
        }
        for entry in entries {
            let offset = try parameters.whole("\(entry.name)_offset")
            let bytes = try parameters.whole("\(entry.name)_bytes")
            guard bytes == entry.bytes else {
                throw parameters.error(
                    "its weight '\(entry.name)' has \(bytes) bytes in '\(name)' instead of "
                        + "\(entry.bytes).")
            }
            guard offset >= 0, offset % SideFile.alignment == 0, bytes <= size, offset <= size - bytes
            else {
                throw parameters.error(
                    "its weight '\(entry.name)' lies at byte \(offset) of '\(name)', which has \(size) "
                        + "bytes: not at a page of it, or not wholly inside.")
            }
            found[entry.name] = WeightBytes(file, offset..<offset + bytes)
        }
    }
}
