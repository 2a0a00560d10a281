import Foundation
import MobileMoE
import Testing

@testable import DemoViewModels

@MainActor
struct ProfileTests {
    let text = String(repeating: "Real text of a page. ", count: 30)  // 630 bytes, which are its tokens

    func profile(_ device: FakeDevice = FakeDevice()) -> ProfileViewModel {
        let profile = ProfileViewModel(text: text, device: device)
        profile.plan = ProfilePlan(prompts: [64, 256, 2000], decoded: 3, rounds: 2)
        return profile
    }

    @Test func theGridIsMeasuredAndShared() async throws {
        let profile = profile(FakeDevice(batteryLevel: 0.8, isCharging: false))
        profile.start(.cpu, model: "tiny", threads: 2) { FakeEngine([]) }
        #expect(profile.isRunning)
        await profile.finished()
        #expect(profile.problem == nil && !profile.isRunning)
        let results = try #require(profile.results[.cpu])
        #expect(results.rounds == 2 && results.bandwidth.count == 2 && results.bandwidth.allSatisfy { $0 > 1e8 })
        let figures = results.engines[0]
        #expect(figures.leftOut == [2000])  // beyond the fake's context of 1000
        #expect(figures.rows.map(\.prompt) == [64, 256])
        for row in figures.rows {
            #expect(row.firstTokenSeconds.count == 2 && row.decodeSeconds.count == 2)
            #expect(row.decode > 0 && row.decode < 5000)  // a token takes 200 microseconds or more
        }
        #expect(results.device?.thermalStates == ["nominal", "nominal", "nominal"])
        #expect(profile.points.contains { $0.series == PaperFigures.device && $0.prompt == 1024 && $0.decodeRate == 148.4 })
        let file = try #require(profile.files[.cpu])
        try #expect(BenchResults.read(Data(contentsOf: file)) == results)
        if let place = ProcessInfo.processInfo.environment["MOBILEMOE_PROFILE_JSON"] {
            try results.json().write(to: URL(filePath: place))  // for the Python reader's test
        }
        try FileManager.default.removeItem(at: file)
    }

    @Test func onlyWholeRoundsCount() async throws {
        let profile = profile()
        profile.plan.rounds = 10_000
        profile.start(.cpu, model: "tiny", threads: 1) { FakeEngine([]) }
        while profile.results[.cpu] == nil { try await Task.sleep(for: .milliseconds(5)) }
        profile.interrupt(because: "Enough.")
        await profile.finished()
        let results = try #require(profile.results[.cpu])
        #expect(profile.problem == "Enough." && results.rounds >= 1)
        #expect(results.engines[0].rows.allSatisfy { $0.decodeSeconds.count == results.rounds })
        #expect(results.bandwidth.count == results.rounds)
    }

    @Test func whatCannotBeMeasuredIsASentence() async {
        let profile = profile()
        profile.start(.cpu, model: "tiny", threads: 1) { FakeEngine([], context: 60) }
        await profile.finished()
        #expect(profile.problem?.contains("has no room for a prompt") == true)
        profile.plan.prompts = [900]
        profile.start(.cpu, model: "tiny", threads: 1) { FakeEngine([], context: 5000) }
        await profile.finished()
        #expect(profile.problem == "The text has 630 tokens, and 903 are needed.")
        profile.start(.mlx, model: "tiny", threads: 1) { throw MobileMoEError(.memory, "Too little memory.") }
        await profile.finished()
        #expect(profile.problem == "Too little memory.")
    }

    @Test func energyIsToldWhereTheBatteryTells() {
        var device = DeviceFigures()
        (device.batteryAtStart, device.batteryAtEnd) = (0.8, 0.77)
        (device.wasCharging, device.seconds) = (false, 130)
        #expect(device.energy == "3 % of the battery in 3 minutes")
        device.wasCharging = true
        #expect(device.energy == nil)
        device.wasCharging = false
        device.batteryAtEnd = nil
        #expect(device.energy == nil)
    }

    @Test func theMedianIsTheMiddle() {
        #expect(median([3, 1, 2]) == 2 && median([4, 1, 2, 3]) == 2.5)
    }

    @Test func promptsGoAroundTheText() {
        #expect(Profiler.window([1, 2, 3], 2, 5) == [3, 1, 2, 3, 1])
    }
}
