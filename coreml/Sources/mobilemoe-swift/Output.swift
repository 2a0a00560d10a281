import Foundation
import MobileMoE

/// Text on standard output, at once; a full disk is an error like any other.
func put(_ text: String) throws {
    var text = text
    try text.withUTF8 { bytes in
        var done = 0
        while done < bytes.count {
            let wrote = write(STDOUT_FILENO, bytes.baseAddress! + done, bytes.count - done)
            if wrote < 0, errno == EINTR { continue }
            guard wrote >= 0 else { throw UserMistake("standard output: \(systemReason()).") }
            done += wrote
        }
    }
}

/// A newline after `text`, unless it ends with one. By bytes: Swift holds "\r\n" for one character.
func endLine(_ text: String) throws {
    if text.utf8.last != UInt8(ascii: "\n") { try put("\n") }
}

/// A line on standard error.
func note(_ text: String) {
    FileHandle.standardError.write(Data((text + "\n").utf8))
}

/// Where `--json` says that figures go.
struct JSONTarget {
    private let option: String?

    var takesOverOutput: Bool { option == "" || option == "-" }

    /// Before the work starts: throws unless the file can be written.
    init(_ arguments: Arguments) throws {
        option = arguments.text("--json")
        guard let option, !takesOverOutput else { return }
        let url = userPath(option)
        let folder = url.deletingLastPathComponent().path
        guard fileKind(url.path) != .folder, fileKind(folder) == .folder else {
            throw UserMistake("--json \(option): not a file in a folder that exists.")
        }
        guard access(folder, W_OK) == 0 else {
            throw UserMistake("--json \(option): the folder \(folder) may not be written to.")
        }
        guard url.pathExtension.lowercased() == "json" || fileKind(url.path) == .other else {
            throw UserMistake(
                "--json \(option): the file for the figures needs a name that ends in .json. To print "
                    + "them in place of the text, put --json last.")
        }
    }

    /// Whole or not at all.
    func write(_ record: some Encodable) throws {
        guard let option else { return }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        encoder.keyEncodingStrategy = .convertToSnakeCase
        let content = try encoder.encode(record) + Data("\n".utf8)
        if takesOverOutput {
            try put(String(decoding: content, as: UTF8.self))
        } else {
            try writeWhole(content, userPath(option))
        }
    }
}

/// Beside it, then renamed; throws a sentence.
func writeWhole(_ content: Data, _ url: URL) throws {
    do {
        let isSpecial = fileKind(url.path) == .other  // a pipe, say
        try content.write(to: url.resolvingSymlinksInPath(), options: isSpecial ? [] : .atomic)
    } catch {
        throw UserMistake("\(url.path) cannot be written: \(error.localizedDescription)")
    }
}

/// The path that a text of the command line names, `~` expanded.
func userPath(_ text: String) -> URL {
    URL(fileURLWithPath: (text as NSString).expandingTildeInPath)
}

/// UTF-8 text without a byte-order mark; throws a sentence that begins with `place`.
func utf8Text(_ content: [UInt8], _ place: String) throws -> String {
    if content.starts(with: [0xFF, 0xFE]) || content.starts(with: [0xFE, 0xFF]) {
        throw UserMistake("\(place) is UTF-16, not UTF-8: save it as UTF-8.")
    }
    let bare = content.starts(with: [0xEF, 0xBB, 0xBF]) ? content.dropFirst(3) : content[...]
    guard let text = String(validating: bare, as: UTF8.self) else {
        throw UserMistake("\(place) is not UTF-8 text.")
    }
    return text
}

/// All of a file; "-" is standard input.
func readAll(_ path: String, _ what: String) throws -> [UInt8] {
    let descriptor = path == "-" ? STDIN_FILENO : open(userPath(path).path, O_RDONLY | O_CLOEXEC)
    defer { if descriptor > STDIN_FILENO { close(descriptor) } }
    guard descriptor >= 0, let content = try? readToEnd(descriptor) else {
        throw UserMistake("The \(what) \(path) cannot be read: \(systemReason()).")
    }
    return content
}
