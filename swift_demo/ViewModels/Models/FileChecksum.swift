import Foundation
import MobileMoE

/// The SHA-256 of a file in hexadecimal. The file is mapped, so that its size does not matter.
func sha256(ofFile url: URL) throws -> String {
    let data = try Data(contentsOf: url, options: .alwaysMapped)
    return data.withUnsafeBytes { SHA256Sum.of($0) }
}
