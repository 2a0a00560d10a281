import Foundation

/// A checkpoint on Hugging Face: the files of one commit, with sizes and checksums.
struct HubRepository: Codable, Equatable, Sendable {
    struct File: Codable, Equatable, Sendable {
        let path: String
        let size: Int
        /// In hexadecimal; nil for small files, which the hub knows by another sum.
        let sha256: String?
    }

    let id: String
    let commit: String
    let files: [File]

    var bytes: Int { files.reduce(0) { $0 + $1.size } }

    static let host = "https://huggingface.co"

    func url(of file: File) throws -> URL { try Self.url("\(id)/resolve/\(commit)/\(file.path)") }

    /// What an engine reads: sizes, weights, tokenizer, chat format and end tokens.
    static func isNeeded(_ path: String) -> Bool {
        let names = [
            "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
            "special_tokens_map.json", "chat_template.jinja", "model.safetensors.index.json",
        ]
        return names.contains(path) || (path.hasSuffix(".safetensors") && !path.contains("/"))
    }

    /// Asks the hub. `token`: of an account that has accepted the licence, where one is needed.
    static func find(_ id: String, token: String?, by transport: any Transport) async throws -> HubRepository {
        let id = id.trimmingCharacters(in: .whitespacesAndNewlines)
        let allowed = /[A-Za-z0-9][A-Za-z0-9._-]{0,95}\/[A-Za-z0-9][A-Za-z0-9._-]{0,95}/
        guard id.wholeMatch(of: allowed) != nil, !id.contains("..") else { throw DownloadError.notAnId(id) }
        struct Info: Decodable { let sha: String }
        struct Entry: Decodable {
            struct Large: Decodable { let oid: String }
            let type: String, path: String, size: Int
            let lfs: Large?
        }
        let info: Info = try await ask("api/models/\(id)", of: id, token, transport)
        guard info.sha.wholeMatch(of: /[0-9a-f]{7,64}/) != nil else { throw DownloadError.unexpectedAnswer }
        let entries: [Entry] = try await ask("api/models/\(id)/tree/\(info.sha)", of: id, token, transport)
        let files = entries.filter { $0.type == "file" && isNeeded($0.path) }.map {
            File(path: $0.path, size: $0.size, sha256: $0.lfs?.oid)
        }
        guard files.allSatisfy({ $0.size >= 0 }) else { throw DownloadError.unexpectedAnswer }
        guard files.contains(where: { $0.path == "config.json" }),
            files.contains(where: { $0.path.hasSuffix(".safetensors") })
        else { throw DownloadError.noCheckpoint(id) }
        return HubRepository(id: id, commit: info.sha, files: files)
    }

    static func headers(token: String?) -> [String: String] {
        guard let token, !token.isEmpty else { return [:] }
        return ["Authorization": "Bearer \(token)"]
    }

    /// Throws for an answer that is none of `expected`.
    static func check(_ status: Int, _ expected: Set<Int>, id: String) throws {
        switch status {
        case _ where expected.contains(status): return
        case 401, 403: throw DownloadError.notAllowed(id)
        case 404: throw DownloadError.notFound(id)
        case 429: throw DownloadError.tooManyRequests
        default: throw DownloadError.status(status)
        }
    }

    private static func ask<Answer: Decodable>(
        _ path: String, of id: String, _ token: String?, _ transport: any Transport
    ) async throws -> Answer {
        let response = try await transport.get(url(path), headers: headers(token: token))
        try check(response.status, [200], id: id)
        let data = try await response.wholeBody(atMost: 16_000_000)
        guard let answer = try? JSONDecoder().decode(Answer.self, from: data) else {
            throw DownloadError.unexpectedAnswer
        }
        return answer
    }

    private static func url(_ path: String) throws -> URL {
        guard let url = URL(string: "\(host)/\(path)") else { throw DownloadError.unexpectedAnswer }
        return url
    }
}
