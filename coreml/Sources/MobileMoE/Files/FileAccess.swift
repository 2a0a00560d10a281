import Foundation

/// A file of which nothing is read yet.
package struct OpenFile: ~Copyable {
    package let path: String
    package let descriptor: Int32

    package init(_ path: String) throws {
        self.path = path
        descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw MobileMoEError(.checkpoint, "\(path) cannot be opened: \(systemReason()).")
        }
    }

    deinit { close(descriptor) }

    package func size() throws -> Int {
        try fileSize(descriptor, path)
    }

    /// Fills `buffer` from `offset` on, as far as the file goes; -> how many bytes came.
    package func read(into buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws -> Int {
        var done = 0
        while done < buffer.count {
            let got = pread(
                descriptor, buffer.baseAddress! + done, buffer.count - done, off_t(offset + done))
            if got < 0, errno == EINTR { continue }
            guard got >= 0 else {
                throw MobileMoEError(.checkpoint, "\(path) cannot be read: \(systemReason()).")
            }
            if got == 0 { break }
            done += got
        }
        return done
    }

    package func bytes(_ count: Int, at offset: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let got = try bytes.withUnsafeMutableBytes { try read(into: $0, at: offset) }
        bytes.removeLast(count - got)
        return bytes
    }
}

/// What the system says of the call that failed last.
package func systemReason() -> String {
    String(cString: strerror(errno))
}

package func fileSize(_ descriptor: Int32, _ path: String) throws -> Int {
    var status = stat()
    guard fstat(descriptor, &status) == 0 else {
        throw MobileMoEError(.checkpoint, "\(path) cannot be read: \(systemReason()).")
    }
    return Int(status.st_size)
}

package enum FileKind { case file, folder, other, linkToNothing, nothing }

package func fileKind(_ path: String) -> FileKind {
    var status = stat()
    if stat(path, &status) == 0 {
        switch status.st_mode & S_IFMT {
        case S_IFREG: return .file
        case S_IFDIR: return .folder
        default: return .other
        }
    }
    return lstat(path, &status) == 0 ? .linkToNothing : .nothing
}

/// A JSON file of a checkpoint, whole; refused beyond `most` bytes.
package func readJSON(_ path: String, kind: MobileMoEError.Kind = .checkpoint) throws -> JSON {
    do {
        let file = try OpenFile(path)
        let size = try file.size()
        guard size <= mostJSONBytes else {
            throw MobileMoEError(kind, "\(path) has \(size) bytes, too many for a JSON file.")
        }
        return try JSON.parse(file.bytes(size, at: 0))
    } catch let error as JSONError {
        throw MobileMoEError(kind, "\(path) \(error.what).")
    } catch let error as MobileMoEError {
        throw MobileMoEError(kind, error.sentence)
    }
}

/// Far above any tokenizer.json: a file that was given by mistake does not fill the memory.
private let mostJSONBytes = 500_000_000

/// All that comes from a descriptor: also of what has no size beforehand, as pipes and the files of
/// /proc. Throws with `errno` set.
package func readToEnd(_ descriptor: Int32) throws -> [UInt8] {
    struct Failed: Error {}
    var content: [UInt8] = []
    var block = [UInt8](repeating: 0, count: 1 << 16)
    while true {
        let got = Foundation.read(descriptor, &block, block.count)
        if got < 0, errno == EINTR { continue }
        guard got >= 0 else { throw Failed() }
        if got == 0 { return content }
        content += block[..<got]
    }
}

/// A file that the system makes as it is read; nil where it has none.
package func systemText(_ path: String) -> String? {
    guard let file = try? OpenFile(path), let content = try? readToEnd(file.descriptor) else {
        return nil
    }
    return String(decoding: content, as: UTF8.self)
}
