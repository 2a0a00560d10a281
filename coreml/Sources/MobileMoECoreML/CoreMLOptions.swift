#if canImport(CoreML)
    import CoreML
    import MobileMoELayers

    /// How a package runs in Core ML.
    public struct CoreMLOptions: Sendable, Hashable {
        /// How the keys and values that `prefill` wrote come to `decode`, and back.
        public enum StateSharing: Sendable, Hashable {
            /// Both functions are given one state. Apple does not document it; published apps do it.
            case shared
            /// Each has its own, and they are copied between calls: twice the cache, and its copying.
            case copied
        }

        /// Of an ML Program; custom layers are computed where `layers` say.
        public var computeUnits = MLComputeUnits.cpuAndGPU
        /// Of an ML Program.
        public var stateSharing = StateSharing.shared
        /// Of a package of custom layers.
        public var layers = LayerOptions()
        /// Bytes that loading may need before it is refused; nil: what the system can give.
        public var memoryLimit: Int?

        public init() {}
    }
#endif
