import Foundation
import MLX
import MLXLLM
import MLXLMCommon

extension MobileMoEMLXModel {
    /// Makes mlx-swift-lm know the architecture; calling it again does nothing new.
    ///
    /// `LLMModelFactory` then loads published BF16 folders and those that `mobilemoe convert --to mlx`
    /// makes. Published INT4 folders it refuses before the model is asked, since their `quantization`
    /// names no bits: those are for `load(folder:)`.
    public static func register() async {
        await LLMTypeRegistry.shared.registerModelType("mobilemoe") { data in
            try MobileMoEMLXModel(configuration: data)
        }
    }

    convenience init(configuration data: Data) throws {
        let configuration: MobileMoEConfiguration
        do {
            configuration = try JSONDecoder().decode(MobileMoEConfiguration.self, from: data)
        } catch {
            throw MobileMoEMLXError("config.json is not one of MobileMoE: \(error).")
        }
        try configuration.validateModelConfiguration()
        self.init(configuration)
    }

    /// The model in `folder`: published BF16 or INT4, or of `mobilemoe convert --to mlx`. The values
    /// of INT4 are exactly the published ones. Throws a sentence for what is wrong with the folder.
    public static func load(folder: URL, computeType: DType? = nil) throws -> MobileMoEMLXModel {
        let path = folder.appendingPathComponent("config.json")
        guard let data = try? Data(contentsOf: path) else {
            throw MobileMoEMLXError("\(path.path) cannot be read: is \(folder.path) a model folder?")
        }
        let model = try MobileMoEMLXModel(configuration: data)
        model.computeType = computeType
        do {
            // Layers without scales stay float, so that this serves every kind of folder.
            try loadWeights(
                modelDirectory: folder, model: model,
                quantization: BaseConfiguration.Quantization(groupSize: 32, bits: 4))
        } catch {
            throw MobileMoEMLXError("The weights in \(folder.path) cannot be loaded: \(error).")
        }
        model.train(false)
        return model
    }
}
