// Writes what the model computes, for a comparison with Python on Linux:
//
//     logits FOLDER OUT.safetensors TOKENS [ADAPTER]
//
// TOKENS are ids with commas between them. OUT has `whole`, the logits of all at once; `steps`, those
// of a prompt in two parts and then of single tokens, with a cache; `greedy`, eight tokens that
// mlx-swift-lm generates; `session`, the logits after the last token in a session of our engine that was
// rewound; or, with an adapter, `whole` with
// it, `without` after it was taken away again, and `fused` after it became part of the weights.
import Foundation
import MLX
import MLXLLM
import MLXLMCommon
import MobileMoE
import MobileMoEMLX

let arguments = CommandLine.arguments
let tokens = arguments[3].split(separator: ",").compactMap { Int32($0) }

do {
    let model = try MobileMoEMLXModel.load(folder: URL(fileURLWithPath: arguments[1]), computeType: .float32)
    // BF16 weights are widened, as Python's comparison does; INT4 ones compute in float32 as they are.
    let wide = model.parameters().flattened().filter { $0.1.dtype == .bfloat16 }
    let widened = wide.map { ($0.0, $0.1.asType(.float32)) }
    try model.update(parameters: .unflattened(widened), verify: [.noUnusedKeys])

    func logits(_ part: ArraySlice<Int32>, _ cache: [KVCache]?) -> MLXArray {
        model(MLXArray(Array(part)).reshaped(1, part.count), cache: cache)
    }

    var results: [String: MLXArray] = [:]
    if arguments.count > 4 {
        let adapter = try MobileMoEAdapter(folder: URL(fileURLWithPath: arguments[4]))
        try adapter.load(into: model)
        results["whole"] = logits(tokens[...], nil)
        eval(results["whole"]!)
        adapter.unload(from: model)
        results["without"] = logits(tokens[...], nil)
        eval(results["without"]!)
        try adapter.fuse(with: model)
        results["fused"] = logits(tokens[...], nil)
    } else {
        results["whole"] = logits(tokens[...], nil)
        let cache = try model.newCache(parameters: nil)
        let half = tokens.count / 2
        var steps = [logits(tokens[..<half], cache), logits(tokens[half..<(half + 3)], cache)]
        for place in (half + 3)..<tokens.count { steps.append(logits(tokens[place...place], cache)) }
        results["steps"] = concatenated(steps, axis: 1)

        // Through the registry and mlx-swift-lm's own generation.
        await MobileMoEMLXModel.register()
        let configuration = try Data(contentsOf: URL(fileURLWithPath: arguments[1] + "/config.json"))
        let registered = try await LLMTypeRegistry.shared.createModel(
            configuration: configuration, modelType: "mobilemoe")
        guard registered is MobileMoEMLXModel else { fatalError("another model is registered") }
        let generated = try TokenIterator(
            input: LMInput(tokens: MLXArray(tokens)), model: model,
            parameters: GenerateParameters(maxTokens: 8, temperature: 0))
        results["greedy"] = MLXArray(generated.map { Int32($0) })

        let engine = try MobileMoEMLXEngine(model, context: 64, endOfAnswer: [], name: "test")
        let session = try await engine.makeSession()
        let ids = tokens.map(Int.init)
        _ = try await session.feed(Array(ids.prefix(half)) + [1, 2, 3])
        try await session.rewind(to: half)
        results["session"] = MLXArray(try await session.feed(Array(ids.dropFirst(half))))
        guard await session.position == ids.count else { fatalError("the position is wrong") }
        for wrong in [[], [-1], Array(repeating: 1, count: 64)] {
            do {
                _ = try await session.feed(wrong)
                fatalError("\(wrong) was fed")
            } catch is MobileMoEError {}
        }
    }
    try save(arrays: results, url: URL(fileURLWithPath: arguments[2]))
} catch {
    FileHandle.standardError.write(Data("\(error)\n".utf8))
    exit(1)
}
