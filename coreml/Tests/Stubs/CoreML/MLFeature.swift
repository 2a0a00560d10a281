import Foundation

/// mlfeaturevalue
@available(macOS 10.13, iOS 11.0, tvOS 11.0, watchOS 4.0, *)
open class MLFeatureValue: NSObject {
    /// mlfeaturevalue/multiarrayvalue
    public let multiArrayValue: MLMultiArray?

    /// mlfeaturevalue/init(multiarray:)
    public init(multiArray value: MLMultiArray) { multiArrayValue = value }
}

/// mlfeatureprovider
@available(macOS 10.13, iOS 11.0, tvOS 11.0, watchOS 4.0, *)
public protocol MLFeatureProvider {
    /// mlfeatureprovider/featurenames
    var featureNames: Set<String> { get }
    /// mlfeatureprovider/featurevalue(for:)
    func featureValue(for featureName: String) -> MLFeatureValue?
}

/// mldictionaryfeatureprovider
@available(macOS 10.13, iOS 11.0, tvOS 11.0, watchOS 4.0, *)
open class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
    private let values: [String: MLFeatureValue]

    /// mldictionaryfeatureprovider/init(dictionary:)
    public init(dictionary: [String: Any]) throws {
        values = try dictionary.mapValues { value in
            guard let value = value as? MLFeatureValue else {
                throw CocoaError(.featureUnsupported)
            }
            return value
        }
    }

    public var featureNames: Set<String> { Set(values.keys) }
    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}
