import Foundation
import MobileMoE
import Observation

/// The profile: the paper's grid on this device, engine by engine.
@MainActor
@Observable
final class ProfileViewModel {
    /// A line of the table: one length of prompt, with the paper's figures where it has them.
    struct Row: Identifiable, Equatable {
        let prompt: Int
        let firstToken, prefillRate, decodeRate: Double
        let peakBytes: Int
        let paperFirstToken, paperDecodeRate: Double?
        var id: Int { prompt }
    }

    /// A point of the chart.
    struct Point: Identifiable, Equatable {
        let series: String
        let prompt: Int
        let decodeRate: Double
        var id: String { "\(series) \(prompt)" }
    }

    var plan = ProfilePlan()
    private(set) var progress: Profiler.Progress?
    /// The last complete rounds of each engine.
    private(set) var results: [EngineKind: BenchResults] = [:]
    /// The same as files to share, once a run has ended; in a folder for temporary ones.
    private(set) var files: [EngineKind: URL] = [:]
    var problem: String?

    @ObservationIgnored private let text: String
    @ObservationIgnored private let device: any DeviceProbe
    @ObservationIgnored private var task: Task<Void, Never>?

    /// `text`: what prompts are cut from.
    init(text: String, device: any DeviceProbe) {
        self.text = text
        self.device = device
    }

    var isRunning: Bool { progress != nil }

    /// Measures one engine; what it had measured before is replaced round by round.
    func start(
        _ kind: EngineKind, model: String, threads: Int,
        open: @escaping @Sendable () async throws -> any DemoEngine
    ) {
        guard !isRunning else { return }
        problem = nil
        progress = Profiler.Progress(done: 0, total: 1, doing: "Opening the model")
        let profiler = Profiler(plan: plan, threads: threads, device: device)
        task = Task { [text] in
            do {
                _ = try await profiler.run(kind, model: model, text: text, open: open) { progress, results in
                    await self.show(kind, progress, results)
                }
            } catch is CancellationError {
            } catch {
                problem = error.localizedDescription
            }
            write(kind)
            progress = nil
        }
    }

    /// Ends the run; complete rounds stay.
    func stop() { task?.cancel() }

    func finished() async { await task?.value }

    /// A phone with too little memory or behind another app gives figures of no use: the run ends.
    func interrupt(because reason: String) {
        guard isRunning else { return }
        stop()
        problem = reason
    }

    func rows(of kind: EngineKind) -> [Row] {
        (results[kind]?.engines.first?.rows ?? []).map {
            Row(
                prompt: $0.prompt, firstToken: $0.firstToken, prefillRate: $0.prefill,
                decodeRate: $0.decode, peakBytes: $0.peakBytes,
                paperFirstToken: PaperFigures.firstToken[$0.prompt],
                paperDecodeRate: PaperFigures.decodeRate[$0.prompt])
        }
    }

    /// Every engine measured, and the paper's phone.
    var points: [Point] {
        let measured = EngineKind.allCases.flatMap { kind in
            rows(of: kind).map { Point(series: kind.title, prompt: $0.prompt, decodeRate: $0.decodeRate) }
        }
        guard !measured.isEmpty else { return [] }
        let paper = PaperFigures.decodeRate.sorted { $0.key < $1.key }.map {
            Point(series: PaperFigures.device, prompt: $0.key, decodeRate: $0.value)
        }
        return measured + paper
    }

    private func write(_ kind: EngineKind) {
        guard let results = results[kind] else { return }
        let url = FileManager.default.temporaryDirectory.appending(path: "\(results.model)-\(kind.resultName).json")
        do {
            try results.json().write(to: url, options: .atomic)
            files[kind] = url
        } catch {
            problem = "The results could not be written: \(error.localizedDescription)"
        }
    }

    private func show(_ kind: EngineKind, _ progress: Profiler.Progress, _ results: BenchResults?) {
        if self.progress != nil { self.progress = progress }
        if let results { self.results[kind] = results }
    }
}
