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
        report: @Sendable (Progress, BenchResults?) async -> Void
    ) async throws -> BenchResults {
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
        var figures = BenchResults.EngineResults(
            name: kind.resultName, description: engine.description, startSeconds: (clock.now - start).seconds)
        figures.leftOut = leftOut
        var results = BenchResults(
            model: model, cpu: device.name, threads: threads, rounds: 0,
            tokenBytes: engine.bytesReadPerToken ?? 0)
        var phone = DeviceFigures()
        phone.thermalStates = [device.thermalState]
        phone.batteryAtStart = device.batteryLevel
        phone.wasCharging = device.isCharging
        let memory = MemoryBandwidth(threads: threads)
        let begin = clock.now
        let total = plan.rounds * prompts.count
        for round in 0..<plan.rounds {
            let bandwidth = await Task.detached { memory.measure() }.value
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
            phone.thermalStates.append(device.thermalState)
            phone.batteryAtEnd = device.batteryLevel
            phone.wasCharging = phone.wasCharging.map { $0 || device.isCharging == true }
            phone.seconds = (clock.now - begin).seconds
            results.device = phone
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

extension BenchResults.EngineResults {
    mutating func add(_ sample: Profiler.Sample, prompt: Int, decoded: Int) {
        var figures = BenchResults.Measured(prompt: prompt, decoded: decoded)
        figures.peakBytes = sample.peakBytes
        figures = contexts[prompt] ?? figures
        figures.firstTokenSeconds.append(sample.firstToken)
        figures.decodeSeconds.append(sample.decode)
        contexts[prompt] = figures
    }
}

extension Duration {
    /// As a number.
    var seconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
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
