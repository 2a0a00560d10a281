import Foundation
import MobileMoE

/// Measures an engine over a plan's grid, with real text.
struct Profiler: Sendable {
    let plan: ProfilePlan
    let threads: Int
    let device: any DeviceProbe

    /// How far it is.
    struct Progress: Equatable, Sendable {
        var done: Int
        var total: Int
        var doing: String
    }

    /// Opens, warms up, measures. `text`: long enough for the longest prompt; each round takes another part
    /// of it. Cancelling the task ends it. Throws what the engine throws, and for a text that is too short.
    func run(
        _ kind: EngineKind, model: String, text: String, open: @Sendable () async throws -> any DemoEngine,
        report: @Sendable (Progress, ProfileResults?) async -> Void
    ) async throws -> ProfileResults {
        let clock = ContinuousClock()
        let start = clock.now
        await report(Progress(done: 0, total: 1, doing: "Opening the model"), nil)
        let engine = try await open()
        let tokens = try engine.tokens(of: text)
        let (prompts, leftOut) = plan.split(context: engine.context)
        guard let longest = prompts.last else {
            throw MobileMoEError(
                .input,
                "The model's context of \(engine.context) tokens has no room for a prompt of the plan and "
                    + "\(plan.decoded) tokens after it.")
        }
        guard tokens.count >= longest + plan.decoded else {
            throw MobileMoEError(
                .input, "The text has \(tokens.count) tokens, and \(longest + plan.decoded) are needed.")
        }
        _ = try await measure(engine, tokens.prefix(32 + 1), prompt: 32)  // also the warm-up
        var figures = EngineFigures(
            name: kind.resultName, description: engine.description, startSeconds: (clock.now - start).seconds,
            leftOut: leftOut)
        var results = ProfileResults(
            model: model, cpu: device.name, threads: threads, rounds: 0,
            tokenBytes: engine.bytesReadPerToken ?? 0, bandwidth: [], engines: [],
            device: DeviceFigures(
                name: device.name, thermalStates: [device.thermalState], batteryAtStart: device.batteryLevel,
                wasCharging: device.isCharging))
        let begin = clock.now
        let total = plan.rounds * prompts.count
        for round in 0..<plan.rounds {
            let threads = threads
            let bandwidth = await Task.detached { MemoryBandwidth.measure(threads: threads) }.value
            var measured: [(Int, Sample)] = []
            for (index, prompt) in prompts.enumerated() {
                let done = round * prompts.count + index
                await report(
                    Progress(
                        done: done, total: total,
                        doing: "Round \(round + 1) of \(plan.rounds), \(prompt) tokens"),
                    results.engines.isEmpty ? nil : results)
                let part = Self.window(tokens, round * (prompt + plan.decoded), prompt + plan.decoded)
                measured.append((prompt, try await measure(engine, part[...], prompt: prompt)))
            }
            // Only whole rounds count: each median is of as many figures as there are bandwidths.
            for (prompt, sample) in measured { figures.add(sample, prompt: prompt, decoded: plan.decoded) }
            results.bandwidth.append(bandwidth)
            results.rounds = round + 1
            results.device.thermalStates.append(device.thermalState)
            results.device.batteryAtEnd = device.batteryLevel
            results.device.wasCharging = results.device.wasCharging.map { $0 || device.isCharging == true }
            results.device.seconds = (clock.now - begin).seconds
            results.engines = [figures]
            await report(Progress(done: (round + 1) * prompts.count, total: total, doing: ""), results)
        }
        return results
    }

    struct Sample: Sendable {
        let firstToken, decode: Double
        let peakBytes: Int
    }

    /// The first `prompt` of `tokens` at once, then the others one by one, as real text and not what
    /// the model would say: all engines have the same work.
    private func measure(_ engine: any DemoEngine, _ tokens: ArraySlice<Int>, prompt: Int) async throws -> Sample {
        try Task.checkCancellation()
        let session = try await engine.session()
        let clock = ContinuousClock()
        let start = clock.now
        _ = try await session.feed(Array(tokens.prefix(prompt)))
        let first = clock.now
        for token in tokens.dropFirst(prompt) {
            try Task.checkCancellation()
            _ = try await session.feed([token])
        }
        return Sample(
            firstToken: (first - start).seconds, decode: (clock.now - first).seconds, peakBytes: peakMemory())
    }

    /// `count` tokens from `start` on; after the end of the text comes its beginning.
    static func window(_ tokens: [Int], _ start: Int, _ count: Int) -> [Int] {
        (0..<count).map { tokens[(start + $0) % tokens.count] }
    }
}

extension EngineFigures {
    mutating func add(_ sample: Profiler.Sample, prompt: Int, decoded: Int) {
        var figures = contexts[String(prompt)] ?? ContextFigures(
            prompt: prompt, decoded: decoded, peakBytes: sample.peakBytes)
        figures.firstTokenSeconds.append(sample.firstToken)
        figures.decodeSeconds.append(sample.decode)
        contexts[String(prompt)] = figures
    }
}

/// What the device says of itself.
protocol DeviceProbe: Sendable {
    /// Model and system: "iPhone17,1, iOS 18.2".
    var name: String { get }
    /// nominal, fair, serious or critical.
    var thermalState: String { get }
    /// 0 to 1; nil without a battery.
    var batteryLevel: Double? { get }
    var isCharging: Bool? { get }
}
