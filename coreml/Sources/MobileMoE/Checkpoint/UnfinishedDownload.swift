import Foundation

/// Signs that a folder is a download which did not finish, and what to do about it.
enum UnfinishedDownload {
    /// What programs that download call a file that they have begun.
    private static let begun = ["incomplete", "part", "partial", "crdownload", "download", "aria2"]
    private static let pointer = Array("version https://git-lfs".utf8)
    private static let pointerBytes = 1024  // a pointer of Git LFS is smaller
    private static let named = 4  // files that a message names; the rest are counted

    /// One sentence without its full stop; nil where nothing shows it. Looks at names and sizes
    /// alone, and at the first bytes of small files.
    static func signs(_ folder: String) -> String? {
        let present = visibleFiles(folder)
        var signs: [String] = []
        if let links = linksToNothing(folder) { signs.append(links) }
        let unfinished = present.filter { begun.contains(($0 as NSString).pathExtension) }
        if !unfinished.isEmpty { signs.append("\(names(unfinished)) was begun") }
        let weights = present.filter {
            $0.hasSuffix(".safetensors") && fileKind("\(folder)/\($0)") == .file
        }
        let beginnings = weights.map { ($0, beginning("\(folder)/\($0)")) }
        let empty = beginnings.filter { $0.1?.isEmpty ?? false }.map(\.0)
        if !empty.isEmpty { signs.append("\(names(empty)) is empty") }
        let pointers = beginnings.filter { $0.1?.starts(with: pointer) ?? false }.map(\.0)
        if !pointers.isEmpty {
            signs.append("\(names(pointers)) is a pointer of Git LFS, which `git lfs pull` replaces")
        }
        let missing = missingShards(folder, weights)
        if !missing.isEmpty { signs.append("\(names(missing)) is missing") }
        guard !signs.isEmpty else { return nil }
        return "the download is not finished (\(signs.joined(separator: "; "))). Finish it with the "
            + "program that began it, or copy all files again"
    }

    /// A few words about the links in `folder` whose files are absent.
    static func linksToNothing(_ folder: String) -> String? {
        let links = visibleFiles(folder).filter { fileKind("\(folder)/\($0)") == .linkToNothing }
        return links.isEmpty ? nil : "\(names(links)) leads to nothing"
    }

    /// The content of a small file.
    private static func beginning(_ path: String) -> [UInt8]? {
        guard let file = try? OpenFile(path), let size = try? file.size(), size < pointerBytes
        else { return nil }
        return try? file.bytes(size, at: 0)
    }

    /// Shards that an index names, or that the names of the others imply.
    private static func missingShards(_ folder: String, _ present: [String]) -> [String] {
        var wanted: Set<String> = []
        let index = "\(folder)/\(Checkpoint.indexFile)"
        if fileKind(index) == .file,  // what is wrong with an index is said elsewhere
            let table = try? readJSON(index).object?["weight_map"]?.object
        {
            wanted.formUnion(table.entries.compactMap(\.value.string))
        }
        for name in present {
            // STEM-00001-of-00003.safetensors
            let parts = name.dropLast(".safetensors".count).components(separatedBy: "-of-")
            guard parts.count == 2, parts[1].count == 5, let total = Int(parts[1]), total > 0,
                parts[0].dropLast(5).hasSuffix("-"), Int(parts[0].suffix(5)) != nil
            else { continue }
            for number in 1...min(total, 1000) {
                let digits = String(number)
                let padded = String(repeating: "0", count: max(0, 5 - digits.count)) + digits
                wanted.insert("\(parts[0].dropLast(5))\(padded)-of-\(parts[1]).safetensors")
            }
        }
        return wanted.subtracting(present).sorted()
    }

    private static func names(_ names: [String]) -> String {
        let sorted = names.sorted()
        let more = sorted.count > named ? " and \(sorted.count - named) more" : ""
        return sorted.prefix(named).joined(separator: ", ") + more
    }
}

/// The names in `folder` but hidden ones, such as the `._name` that macOS keeps beside a file; sorted.
func visibleFiles(_ folder: String) -> [String] {
    let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
    return names.filter { !$0.hasPrefix(".") }.sorted()
}

/// Model files of other programs in `folder`, which are never read, and why; nil: none.
func foreignFiles(_ folder: String) -> String? {
    let formats: [([String], String)] = [
        (
            ["bin", "pt", "pth", "ckpt", "pkl", "pickle"],
            "pickles can run code when they are opened and are never read"
        ),
        (
            ["gguf", "ggml"],
            "files of llama.cpp are not read, since they hold weights that are rounded in another way"
        ),
    ]
    let present = visibleFiles(folder)
    for (endings, why) in formats {
        let names = present.filter { endings.contains(($0 as NSString).pathExtension.lowercased()) }
        if !names.isEmpty {
            return "\(names.joined(separator: ", ")): \(why). Download the safetensors files"
        }
    }
    return nil
}
