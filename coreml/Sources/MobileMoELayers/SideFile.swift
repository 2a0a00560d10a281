import Foundation
import MobileMoE
import Synchronization

/// The files of weights that lie beside packages of custom layers (coreml/README.md, section 7).
///
/// Core ML tells a layer no path, so an app registers the file before it loads the model.
public enum SideFile {
    /// Of every entry in a file: a page of iPhones and Macs.
    public static let alignment = 16384

    private struct Known {
        var urls: [String: URL] = [:]
        var maps: [String: Map] = [:]
        struct Map { weak var file: MappedFile? }
    }
    private static let known = Mutex(Known())

    /// Says where the file with this SHA-256 (in hexadecimal) lies.
    ///
    /// `checking` reads all of it and throws when it is another: do so once after a download.
    public static func register(_ url: URL, sha256: String, checking: Bool = false) throws {
        let name = sha256.lowercased()
        guard name.count == 64, name.allSatisfy(\.isHexDigit) else {
            throw MobileMoEError(.checkpoint, "'\(sha256)' is not a SHA-256 in hexadecimal.")
        }
        if checking {
            let file = try MappedFile(url.path, largePages: false)
            let found = withExtendedLifetime(file) { SHA256Sum.of(file.bytes) }
            guard found == name else {
                throw MobileMoEError(
                    .checkpoint,
                    "'\(url.path)' is damaged or of another model: its SHA-256 is \(found) instead of "
                        + "\(name). Copy it again.")
            }
        }
        known.withLock { $0.urls[name] = url }
    }

    static func mapped(sha256: String, name: String) throws -> MappedFile {
        let key = sha256.lowercased()
        return try known.withLock { known in
            if let file = known.maps[key]?.file { return file }
            guard let url = known.urls[key] else {
                throw MobileMoEError(
                    .checkpoint,
                    "The model's weights lie beside it in '\(name)', and the app has not said where: call "
                        + "SideFile.register before loading.")
            }
            let file = try MappedFile(url.path)
            known.maps[key] = Known.Map(file: file)
            return file
        }
    }
}
