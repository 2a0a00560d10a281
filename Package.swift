// swift-tools-version: 6.0
// MobileMoE for apps: the C++ kernel, and Swift over it. No dependencies, so that it builds without a network.
import PackageDescription

// What stands in for Apple's frameworks where tests run on Linux; an app never gets it.
#if os(Linux)
    let standIns: [Target] = [
        .target(
            name: "CoreML", dependencies: ["Metal"], path: "coreml/Tests/Stubs/CoreML"
        ),
        .target(
            name: "Metal", dependencies: ["MetalShim"], path: "coreml/Tests/Stubs/Metal"
        ),
        .target(
            name: "MetalShim",
            path: "coreml/Tests/Stubs/MetalShim",
            exclude: ["address_spaces", "metal"],
            // Fibers and volatile memory are slow enough with optimisation.
            cxxSettings: [.headerSearchPath("metal"), .unsafeFlags(["-O2"])]
        ),
    ]
    let frameworks: [Target.Dependency] = ["CoreML", "Metal"]
    let appleProducts: [Product] = []
#else
    let standIns: [Target] = []
    let frameworks: [Target.Dependency] = []
    let appleProducts: [Product] = [
        .library(name: "MobileMoECoreML", targets: ["MobileMoECoreML"])
    ]
#endif

let package = Package(
    name: "MobileMoE",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "MobileMoE", targets: ["MobileMoE"]),
        .executable(name: "mobilemoe-swift", targets: ["mobilemoe-swift"]),
    ] + appleProducts,
    targets: [
        .target(
            name: "MobileMoEKernel",
            path: "coreml/kernel",
            exclude: ["CMakeLists.txt", "README.md", "bench", "build_library.py", "fuzz", "ort"],
            sources: ["src", "files"],
            publicHeadersPath: "include"
        ),
        .target(
            name: "MobileMoE",
            dependencies: ["MobileMoEKernel"],
            path: "coreml/Sources/MobileMoE"
        ),
        .executableTarget(
            name: "mobilemoe-swift",
            dependencies: ["MobileMoE"],
            path: "coreml/Sources/mobilemoe-swift"
        ),
        .target(
            name: "MobileMoELayers",
            dependencies: ["MobileMoE", "MobileMoEKernel"],
            path: "coreml/Sources/MobileMoELayers"
        ),
        .target(
            name: "MobileMoECoreML",
            dependencies: ["MobileMoE", "MobileMoELayers"] + frameworks,
            path: "coreml/Sources/MobileMoECoreML",
            resources: [.copy("Metal")]
        ),
        .testTarget(
            name: "MobileMoETests",
            dependencies: ["MobileMoE"],
            path: "coreml/Tests/MobileMoETests"
        ),
        .testTarget(
            name: "MobileMoECoreMLTests",
            dependencies: ["MobileMoECoreML", "MobileMoELayers", "MobileMoE"] + frameworks,
            path: "coreml/Tests/MobileMoECoreMLTests"
        ),
        // The app's view models, which Xcode compiles into the app; here so that Linux tests them.
        .target(
            name: "DemoViewModels",
            dependencies: ["MobileMoE"],
            path: "swift_demo/ViewModels"
        ),
        .testTarget(
            name: "DemoViewModelsTests",
            dependencies: ["DemoViewModels"],
            path: "swift_demo/Tests"
        ),
    ] + standIns,
    swiftLanguageModes: [.v6],
    cxxLanguageStandard: .cxx17
)
