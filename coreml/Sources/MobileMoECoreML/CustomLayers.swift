#if canImport(CoreML)
    import CoreML
    import Foundation
    import MobileMoE
    import MobileMoELayers

    // The classes that a package of custom layers asks for by name (coreml/README.md). What they
    // compute is in MobileMoELayers; here are Core ML's arrays.

    /// What all five have in common.
    public class MobileMoELayer: NSObject, MLCustomLayer {
        fileprivate let layer: any PortableLayer

        fileprivate class var portable: (any PortableLayer.Type)? { nil }

        public required init(parameters: [String: Any]) throws {
            guard let portable = Self.portable else {
                throw MobileMoEError(.checkpoint, "The package names MobileMoELayer, which is no layer.")
            }
            layer = try portable.init(parameters: parameters)
        }

        public func setWeightData(_ weights: [Data]) throws { try layer.setWeightData(weights) }

        public func outputShapes(forInputShapes inputShapes: [[NSNumber]]) throws -> [[NSNumber]] {
            try layer.outputShapes(forInputShapes: inputShapes.map { $0.map(\.intValue) })
                .map { $0.map { NSNumber(value: $0) } }
        }

        public func evaluate(inputs: [MLMultiArray], outputs: [MLMultiArray]) throws {
            try layer.evaluate(inputs: inputs.map(LayerArray.init), outputs: outputs.map(LayerArray.init))
        }
    }

    #if canImport(ObjectiveC)
        @objc(MobileMoEEmbedding)
    #endif
    public final class MobileMoEEmbedding: MobileMoELayer {
        override fileprivate class var portable: (any PortableLayer.Type)? { EmbeddingLayer.self }
    }

    #if canImport(ObjectiveC)
        @objc(MobileMoEAttention)
    #endif
    public final class MobileMoEAttention: MobileMoELayer {
        override fileprivate class var portable: (any PortableLayer.Type)? { AttentionLayer.self }
    }

    #if canImport(ObjectiveC)
        @objc(MobileMoECacheRows)
    #endif
    public final class MobileMoECacheRows: MobileMoELayer {
        override fileprivate class var portable: (any PortableLayer.Type)? { CacheRowsLayer.self }
    }

    #if canImport(ObjectiveC)
        @objc(MobileMoEHead)
    #endif
    public final class MobileMoEHead: MobileMoELayer {
        override fileprivate class var portable: (any PortableLayer.Type)? { HeadLayer.self }
    }

    /// On the CPU, or by Metal with a command queue of its own where `LayerOptions` say so.
    #if canImport(ObjectiveC)
        @objc(MobileMoEExperts)
    #endif
    public final class MobileMoEExperts: MobileMoELayer {
        override fileprivate class var portable: (any PortableLayer.Type)? { ExpertsLayer.self }

        #if canImport(Metal)
            private let onGPU = LayerOptions.current.expertsOnGPU
            private var gpu: ExpertsOnGPU?

            override public func evaluate(inputs: [MLMultiArray], outputs: [MLMultiArray]) throws {
                guard onGPU, let experts = layer as? ExpertsLayer else {
                    return try super.evaluate(inputs: inputs, outputs: outputs)
                }
                let gpu = try gpu ?? ExpertsOnGPU(experts.sizes, weight: experts.weight)
                self.gpu = gpu
                try experts.evaluate(
                    inputs: inputs.map(LayerArray.init), outputs: outputs.map(LayerArray.init), gpu.compute)
            }
        #endif
    }

    extension LayerArray {
        init(_ array: MLMultiArray) {
            self.init(
                start: array.dataPointer, shape: array.shape.map(\.intValue),
                strides: array.strides.map(\.intValue), isFloat32: array.dataType == .float32)
        }
    }
#endif
