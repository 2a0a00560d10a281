#if canImport(CoreML)
    import CoreML
    import MobileMoE

    /// A network of custom layers: both caches go in, and the rows of the new tokens come out.
    final class CustomLayerRunner: PackageRunner {
        private let model: MLModel
        private let manifest: PackageManifest
        private let caches: [String: MLMultiArray]

        init(_ model: MLModel, _ manifest: PackageManifest) throws {
            self.model = model
            self.manifest = manifest
            caches = try ["key": MLMultiArray(zeros: manifest.cacheShape), "value": MLMultiArray(zeros: manifest.cacheShape)]
        }

        let fillsBlocks = false

        func run(_ tokens: [Int], at position: Int) throws -> [Float] {
            var inputs = [
                "tokens": try MLMultiArray(integers: tokens, shape: [tokens.count]),
                "position": try MLMultiArray(integers: [position], shape: [1]),
            ]
            for (kind, cache) in caches { inputs["\(kind)_cache"] = cache }
            let output = try model.prediction(from: features(inputs))
            for (kind, cache) in caches {
                try store(output.array("new_\(kind)s"), in: cache, tokens.count, at: position)
            }
            return try output.array("logits").lastLogits(
                tokens: tokens.count, vocabulary: manifest.vocabularySize)
        }

        /// cache[l][h][position + t] = rows[l][h][t], by the rows' strides.
        private func store(
            _ rows: MLMultiArray, in cache: MLMultiArray, _ count: Int, at position: Int
        ) throws {
            let (layers, heads, context, width) = (
                manifest.cacheShape[0], manifest.cacheShape[1], manifest.cacheShape[2],
                manifest.cacheShape[3]
            )
            let strides = try rows.lastStrides([layers, heads, count, width], "new rows")
            guard rows.dataType == .float32, strides[3] == 1 else {
                throw MobileMoEError(.kernel, "Core ML gave new rows of another type than float32.")
            }
            let from = rows.dataPointer.assumingMemoryBound(to: Float.self)
            let to = cache.dataPointer.assumingMemoryBound(to: Float.self)
            for layer in 0..<layers {
                for head in 0..<heads {
                    for token in 0..<count {
                        let source = layer * strides[0] + head * strides[1] + token * strides[2]
                        let target = ((layer * heads + head) * context + position + token) * width
                        (to + target).update(from: from + source, count: width)
                    }
                }
            }
        }
    }
#endif
