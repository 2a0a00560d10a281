import Foundation
import MobileMoE

/// The model of a command line, with word of it where standard error is a terminal.
///
/// `withTokenizer`: false where tokens come in and go out.
func openModel(_ arguments: Arguments, withTokenizer: Bool = true) async throws -> MobileMoEModel {
    let options = try arguments.engineOptions()
    let folder = userPath(arguments.model)
    let isRepositoryName = /[A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*/
    if fileKind(folder.path) == .nothing, arguments.model.wholeMatch(of: isRepositoryName) != nil {
        throw UserMistake(
            "There is no folder \(arguments.model). A repository of Hugging Face is fetched by "
                + "`hf download \(arguments.model) --local-dir FOLDER`.")
    }
    let speaks = isatty(STDERR_FILENO) == 1
    if speaks { note("Loading \(arguments.model) ...") }
    let start = ContinuousClock.now
    let engine = try CPUEngine(folder: folder, options: options)
    let tokenizer = withTokenizer ? try CheckpointTokenizer(
        folder: folder, vocabularySize: engine.vocabularySize,
        endOfAnswer: Array(engine.endOfAnswer)) : nil
    let model = try await MobileMoEModel(engine: engine, tokenizer: tokenizer)
    if speaks { note("Loaded \(engine.summary) in \(fixed((ContinuousClock.now - start).seconds, 1)) s.") }
    return model
}
