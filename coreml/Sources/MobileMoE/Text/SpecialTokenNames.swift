/// What the small files of a tokenizer say: which of its tokens begin and end a text, and the
/// template of its chats.
struct SpecialTokenNames: Sendable {
    /// Role ("bos_token", "eos_token", ...) -> name; the first file that names one decides.
    let byRole: [String: String]
    /// The names of tokens that end an answer, of every file.
    let ends: [String]
    static let roles = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token"]

    init(folder: String) throws {
        var byRole: [String: String] = [:]
        var ends = ["<|end_of_text|>", "<|eot|>"]
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            guard let content = try settings("\(folder)/\(file)") else { continue }
            for role in Self.roles {
                let token = content[role]
                guard let name = token?.string ?? token?.object?["content"]?.string else { continue }
                byRole[role] = byRole[role] ?? name
                if role == "eos_token" { ends.append(name) }
            }
        }
        self.byRole = byRole
        self.ends = ends
    }
}

/// A JSON object of a tokenizer's folder; nil where there is no such file.
func settings(_ path: String) throws -> JSON.Object? {
    guard fileKind(path) == .file else { return nil }
    guard let content = try readJSON(path, kind: .tokenizer).object else {
        throw MobileMoEError(.tokenizer, "\(path) is not a JSON object.")
    }
    return content
}
