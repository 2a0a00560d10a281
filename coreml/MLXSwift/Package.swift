// swift-tools-version: 6.0
// MobileMoE on the GPU by MLX Swift: a package of its own, since it needs mlx-swift-lm.
import PackageDescription

let package = Package(
    name: "MobileMoEMLX",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "MobileMoEMLX", targets: ["MobileMoEMLX"])
    ],
    dependencies: [
        .package(name: "MobileMoE", path: "../.."),
        .package(url: "https://github.com/ml-explore/mlx-swift", .upToNextMinor(from: "0.31.6")),
        // The state of mlx-swift-lm that this was compiled with.
        .package(
            url: "https://github.com/ml-explore/mlx-swift-lm",
            revision: "14414441fa44f45eee35a61e9fa0bab577cf9734"),
    ],
    targets: [
        .target(
            name: "MobileMoEMLX",
            dependencies: [
                .product(name: "MLX", package: "mlx-swift"),
                .product(name: "MLXNN", package: "mlx-swift"),
                .product(name: "MLXLMCommon", package: "mlx-swift-lm"),
                .product(name: "MLXLLM", package: "mlx-swift-lm"),
                .product(name: "MobileMoE", package: "MobileMoE"),
            ]
        )
    ]
)
