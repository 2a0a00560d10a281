import Foundation

/// The ways to run a model, in the order in which the app offers them.
enum EngineKind: String, CaseIterable, Codable, Identifiable, Sendable {
    case cpu, coreML, mlx

    var id: Self { self }

    var title: String {
        switch self {
        case .cpu: "CPU kernel"
        case .coreML: "Core ML"
        case .mlx: "MLX on the GPU"
        }
    }

    /// The name in results that `mobilemoe bench --compare` reads; it has "cpu" and "mlx" of its own.
    var resultName: String {
        switch self {
        case .cpu: "cpu"
        case .coreML: "coreml"
        case .mlx: "mlx"
        }
    }

    /// Whether iOS ends the app for using it behind another one. What runs on the GPU must stop.
    var mayNotRunInBackground: Bool { self != .cpu }
}
