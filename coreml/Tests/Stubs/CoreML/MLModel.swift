import Foundation

/// mlcomputeunits
@available(macOS 10.14, iOS 12.0, tvOS 12.0, watchOS 5.0, *)
public enum MLComputeUnits: Int, Sendable {
    case cpuOnly = 0
    case cpuAndGPU = 1
    case all = 2
    @available(macOS 13.0, iOS 16.0, tvOS 16.0, watchOS 9.0, *)
    case cpuAndNeuralEngine = 3
}

/// mlmodelconfiguration
@available(macOS 10.14, iOS 12.0, tvOS 12.0, watchOS 5.0, *)
open class MLModelConfiguration: NSObject {
    /// mlmodelconfiguration/computeunits
    open var computeUnits = MLComputeUnits.all
    /// mlmodelconfiguration/functionname
    @available(macOS 15.0, iOS 18.0, tvOS 18.0, watchOS 11.0, *)
    open var functionName: String?
}

/// mlstate
@available(macOS 15.0, iOS 18.0, tvOS 18.0, watchOS 11.0, *)
public final class MLState: NSObject, @unchecked Sendable {
    /// Of the fake: the arrays, by name.
    public let arrays: [String: MLMultiArray]
    init(_ arrays: [String: MLMultiArray]) { self.arrays = arrays }

    /// mlstate/withmultiarray(for:_:)
    public func withMultiArray<R>(
        for stateName: String, _ body: (MLMultiArray) throws -> R
    ) rethrows -> R {
        try body(arrays[stateName]!)
    }
}

/// mlmodel
@available(macOS 10.13, iOS 11.0, tvOS 11.0, watchOS 4.0, *)
open class MLModel: NSObject {
    private let fake: any FakeModel
    private let lock = NSLock()

    /// mlmodel/init(contentsof:configuration:)
    @available(macOS 10.14, iOS 12.0, tvOS 12.0, watchOS 5.0, *)
    public convenience init(contentsOf url: URL, configuration: MLModelConfiguration) throws {
        guard url.pathExtension == "mlmodelc", FileManager.default.fileExists(atPath: url.path),
            let make = FakeModels.make
        else { throw CocoaError(.fileReadNoSuchFile) }
        self.init(try make(url, configuration))
    }

    private init(_ fake: any FakeModel) { self.fake = fake }

    /// mlmodel/compilemodel(at:)-6442s
    @available(macOS 13.0, iOS 16.0, *)
    public class func compileModel(at url: URL) async throws -> URL {
        guard FileManager.default.fileExists(atPath: url.path) else {
            throw CocoaError(.fileReadNoSuchFile)
        }
        let place = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        let compiled = place.appendingPathExtension("mlmodelc")
        try FileManager.default.createDirectory(at: compiled, withIntermediateDirectories: true)
        return compiled
    }

    /// mlmodel/makestate()
    @available(macOS 15.0, iOS 18.0, tvOS 18.0, watchOS 11.0, *)
    public func makeState() -> MLState { MLState(fake.makeState()) }

    /// mlmodel/prediction(from:using:)-97bu1
    @available(macOS 15.0, iOS 18.0, tvOS 18.0, watchOS 11.0, *)
    public func prediction(
        from inputFeatures: any MLFeatureProvider, using state: MLState
    ) throws -> any MLFeatureProvider {
        try run(inputFeatures, state.arrays)
    }

    /// mlmodel/prediction(from:)-9y2aa
    public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider {
        try run(input, [:])
    }

    private func run(
        _ input: any MLFeatureProvider, _ state: [String: MLMultiArray]
    ) throws -> any MLFeatureProvider {
        precondition(lock.try(), "Two predictions of one model at once.")
        defer { lock.unlock() }
        let arrays = input.featureNames.reduce(into: [String: MLMultiArray]()) {
            $0[$1] = input.featureValue(for: $1)!.multiArrayValue!
        }
        let outputs = try fake.predict(arrays, state)
        return try MLDictionaryFeatureProvider(
            dictionary: outputs.mapValues { MLFeatureValue(multiArray: $0) })
    }
}

/// What answers in the place of a compiled model; not Apple's.
public protocol FakeModel {
    func makeState() -> [String: MLMultiArray]
    func predict(
        _ inputs: [String: MLMultiArray], _ state: [String: MLMultiArray]
    ) throws -> [String: MLMultiArray]
}

/// Makes the fakes that `MLModel` loads; not Apple's.
public enum FakeModels {
    nonisolated(unsafe) public static var make: ((URL, MLModelConfiguration) throws -> any FakeModel)?
}
