#if canImport(CoreML)
    import CoreML
    import MobileMoE

    /// An ML Program: `prefill` for a block, `decode` for a token, and their state.
    final class ProgramRunner: PackageRunner {
        private let program: LoadedPackage.Program
        private let manifest: PackageManifest
        private let prefillState: MLState
        private let decodeState: MLState
        private var lastWasDecode = false

        init(_ program: LoadedPackage.Program, _ manifest: PackageManifest) {
            self.program = program
            self.manifest = manifest
            prefillState = program.prefill.makeState()
            switch program.stateSharing {
            case .shared: decodeState = prefillState
            case .copied: decodeState = program.decode.makeState()
            }
        }

        let fillsBlocks = true

        func run(_ tokens: [Int], at position: Int) throws -> [Float] {
            let isDecode = tokens.count == 1
            let (model, state) =
                isDecode ? (program.decode, decodeState) : (program.prefill, prefillState)
            if prefillState !== decodeState, isDecode != lastWasDecode {
                copyCache(from: isDecode ? prefillState : decodeState, to: state)
            }
            lastWasDecode = isDecode
            // Padding may be any token: no counted one looks at its rows, which are written again later.
            let room = isDecode ? 1 : manifest.block
            let padded = tokens + Array(repeating: 0, count: room - tokens.count)
            var inputs = [
                "tokens": try MLMultiArray(integers: padded, shape: [1, room]),
                "position": try MLMultiArray(integers: [position], shape: [1]),
            ]
            if !isDecode, !manifest.allLogits {
                inputs["length"] = try MLMultiArray(integers: [tokens.count], shape: [1])
            }
            let output = try model.prediction(from: features(inputs), using: state)
            return try output.array("logits").lastLogits(
                tokens: tokens.count, vocabulary: manifest.vocabularySize)
        }

        private func copyCache(from source: MLState, to target: MLState) {
            for name in ["key_cache", "value_cache"] {
                source.withMultiArray(for: name) { rows in
                    target.withMultiArray(for: name) { rows.transfer(to: $0) }
                }
            }
        }
    }
#endif
