import Foundation

extension Checkpoint {
    /// The tokens that end an answer by config.json and generation_config.json; a tokenizer's own come
    /// on top.
    func endOfAnswer() throws -> Set<Int> {
        var ends = Set(configuration.endOfAnswer)
        let path = "\(folder)/generation_config.json"
        guard fileKind(path) == .file else { return ends }
        guard let content = try readJSON(path).object else {
            throw MobileMoEError(.checkpoint, "\(path) is not a JSON object.")
        }
        for token in try tokenIDs("generation_config.json: eos_token_id", content["eos_token_id"]) {
            guard (0..<configuration.vocabularySize).contains(token) else {
                throw MobileMoEError(
                    .checkpoint,
                    "generation_config.json: eos_token_id is \(token); the vocabulary has "
                        + "\(configuration.vocabularySize) entries.")
            }
            ends.insert(token)
        }
        return ends
    }
}
