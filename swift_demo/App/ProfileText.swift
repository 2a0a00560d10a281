import Foundation

/// The text that the profile's prompts are cut from: this project's own documentation, which the target
/// copies from docs/.
enum ProfileText {
    static func read(from bundle: Bundle) -> String {
        let pages = bundle.urls(forResourcesWithExtension: "md", subdirectory: nil) ?? []
        return pages.sorted { $0.lastPathComponent < $1.lastPathComponent }
            .compactMap { try? String(contentsOf: $0, encoding: .utf8) }
            .joined(separator: "\n\n")
    }
}
