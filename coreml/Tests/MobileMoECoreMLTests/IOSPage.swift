// The code for Core ML of docs/ios.md, word for word (tests/swift/test_ios_page_code.py); PackageTests runs it.

import Foundation
import MobileMoE
import MobileMoECoreML

func openPackage(_ name: String) async throws -> MobileMoEModel {
    guard let package = Bundle.main.url(forResource: name, withExtension: "mlmodelc") else {
        throw CocoaError(.fileNoSuchFile)
    }
    return try await MobileMoEModel(package: package)
}

func openWithTwoStates(_ package: URL) async throws -> MobileMoEModel {
    var options = CoreMLOptions()
    options.stateSharing = .copied
    options.computeUnits = .cpuOnly
    return try await MobileMoEModel(package: package, options: options)
}
