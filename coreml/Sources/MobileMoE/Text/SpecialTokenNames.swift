/// What the small files of a tokenizer say: which of its tokens begin and end a text, and the
/// template of its chats.
struct SpecialTokenNames: Sendable {
    /// Role ("bos_token", "eos_token", ...) -> name; the first file that names one decides.
    let byRole: [String: String]
    /// The names of tokens that end an answer, of every file.
    let ends: [String]
    /// The ids of generation_config.json that end an answer.
    let endIDs: [Int]

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
        let path = "\(folder)/generation_config.json"
        endIDs = try Self.ids(try settings(path)?["eos_token_id"], path)
    }

    /// An `eos_token_id`, which is null, an id or a list of ids.
    private static func ids(_ value: JSON?, _ path: String) throws -> [Int] {
        switch value {
        case nil, .null: return []
        case .array(let values):
            return try values.flatMap { try ids($0, path) }
        case .integer(let id): return [id]
        case .some(let other):
            throw MobileMoEError(
                .tokenizer, "\(path): eos_token_id is \(other.shown); token ids are whole numbers.")
        }
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
