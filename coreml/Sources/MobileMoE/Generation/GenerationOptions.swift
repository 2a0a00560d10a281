import Foundation

/// How to continue a prompt.
///
/// With `temperature` 0 the likeliest token is taken, whatever top-p, top-k, min-p and seed say. The
/// three filters apply one after the other, before the temperature. The repetition penalty divides
/// the scores of the last 20 tokens.
public struct GenerationOptions: Sendable, Equatable {
    /// The longest answer, in tokens.
    public var maxTokens: Int
    public var temperature: Double
    /// Keep the likeliest tokens that together have this probability; 1: all.
    public var topP: Double
    /// Keep this many tokens; 0: all.
    public var topK: Int
    /// Keep tokens at least this probable, relative to the likeliest; 0: all.
    public var minP: Double
    /// 1: none.
    public var repetitionPenalty: Double
    /// Makes sampling repeatable; nil: another text each time.
    public var seed: UInt64?
    /// Text that ends the answer, and is not part of it.
    public var stop: [String]
    /// Whether the tokens that end an answer are taken for any others: for measurements.
    public var ignoresEnd: Bool

    public init(
        maxTokens: Int = 256, temperature: Double = 0, topP: Double = 1, topK: Int = 0,
        minP: Double = 0, repetitionPenalty: Double = 1, seed: UInt64? = nil, stop: [String] = [],
        ignoresEnd: Bool = false
    ) {
        self.maxTokens = maxTokens
        self.temperature = temperature
        self.topP = topP
        self.topK = topK
        self.minP = minP
        self.repetitionPenalty = repetitionPenalty
        self.seed = seed
        self.stop = stop
        self.ignoresEnd = ignoresEnd
    }

    /// Below this, 1 / temperature could make scores overflow.
    static let leastTemperature = 0.01

    /// Throws, naming the option, for a senseless value.
    public func check() throws {
        func need(_ good: Bool, _ name: String, _ value: Any, _ allowed: String) throws {
            guard good else {
                throw MobileMoEError(.input, "\(name) is \(value); it must be \(allowed).")
            }
        }
        try need(maxTokens >= 1, "max-tokens", maxTokens, "at least 1")
        try need(
            temperature == 0 || (temperature >= Self.leastTemperature && temperature.isFinite),
            "temperature", temperature, "0 (greedy) or at least \(Self.leastTemperature)")
        try need(topP > 0 && topP <= 1, "top-p", topP, "above 0 and at most 1")
        try need(topK >= 0, "top-k", topK, "at least 1, or 0 for no limit")
        try need(minP >= 0 && minP <= 1, "min-p", minP, "from 0 to 1")
        try need(
            repetitionPenalty > 0 && repetitionPenalty.isFinite, "repetition-penalty",
            repetitionPenalty, "a positive number")
        try need(
            !stop.contains(""), "stop", stop, "one or more strings, none of them empty")
    }
}
