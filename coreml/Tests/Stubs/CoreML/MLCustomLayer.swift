import Foundation
import Metal

/// mlcustomlayer
@available(macOS 10.13.2, iOS 11.2, tvOS 11.2, watchOS 4.2, *)
public protocol MLCustomLayer {
    /// mlcustomlayer/init(parameters:)
    init(parameters: [String: Any]) throws
    /// mlcustomlayer/setweightdata(_:)
    func setWeightData(_ weights: [Data]) throws
    /// mlcustomlayer/outputshapes(forinputshapes:)
    func outputShapes(forInputShapes inputShapes: [[NSNumber]]) throws -> [[NSNumber]]
    /// mlcustomlayer/evaluate(inputs:outputs:)
    func evaluate(inputs: [MLMultiArray], outputs: [MLMultiArray]) throws
    /// mlcustomlayer/encode(commandbuffer:inputs:outputs:), which a class may leave out
    func encode(
        commandBuffer: any MTLCommandBuffer, inputs: [any MTLTexture], outputs: [any MTLTexture]) throws
}

extension MLCustomLayer {
    public func encode(
        commandBuffer: any MTLCommandBuffer, inputs: [any MTLTexture], outputs: [any MTLTexture]
    ) throws {
        throw CocoaError(.featureUnsupported)
    }
}
