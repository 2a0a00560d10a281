// swift-tools-version: 6.0
// MobileMoE for apps: the C++ kernel, and Swift over it. No dependencies, so that it builds without a network.
import PackageDescription

let package = Package(
    name: "MobileMoE",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "MobileMoE", targets: ["MobileMoE"])
    ],
    targets: [
        .target(
            name: "MobileMoEKernel",
            path: "coreml/kernel",
            exclude: ["CMakeLists.txt", "README.md", "bench", "build_library.py", "fuzz"],
            sources: ["src", "files"],
            publicHeadersPath: "include"
        ),
        .target(
            name: "MobileMoE",
            dependencies: ["MobileMoEKernel"],
            path: "coreml/Sources/MobileMoE"
        ),
        .testTarget(
            name: "MobileMoETests",
            dependencies: ["MobileMoE"],
            path: "coreml/Tests/MobileMoETests"
        ),
    ],
    swiftLanguageModes: [.v6],
    cxxLanguageStandard: .cxx17
)
