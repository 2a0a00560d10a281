import Foundation

/// A file in memory without a copy, read-only.
package final class MappedFile: @unchecked Sendable {  // nothing of it changes after `init`
    package let path: String
    package let bytes: UnsafeRawBufferPointer
    private let file: OpenFile

    /// `largePages`: faster where all of the file is used; else they bring in what is not.
    package init(_ path: String, largePages: Bool = true) throws {
        self.path = path
        file = try OpenFile(path)
        let size = try file.size()
        guard size > 0 else { throw MobileMoEError(.checkpoint, "\(path) is empty.") }
        let start = mmap(nil, size, PROT_READ, MAP_SHARED, file.descriptor, 0)
        guard let start, start != MAP_FAILED else {
            throw MobileMoEError(
                .checkpoint, "\(path) cannot be mapped into memory: \(systemReason()).")
        }
        #if os(Linux)
            // A kernel without them for files says no, which changes nothing.
            if largePages { _ = madvise(start, size, MADV_HUGEPAGE) }
        #endif
        bytes = UnsafeRawBufferPointer(start: start, count: size)
    }

    deinit { munmap(UnsafeMutableRawPointer(mutating: bytes.baseAddress!), bytes.count) }

    /// Throws when the file has become shorter, so that reading it would end the process.
    package func check() throws {
        let left = try file.size()
        guard left >= bytes.count else {
            throw MobileMoEError(
                .checkpoint,
                "\(path) became shorter while it was in use: \(left) of \(bytes.count) bytes are "
                    + "left. Copy the checkpoint again, and load it anew.")
        }
    }
}
