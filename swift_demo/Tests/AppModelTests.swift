import Foundation
import MobileMoE
import Testing

@testable import DemoViewModels

@MainActor
struct AppModelTests {
    func app(_ folder: URL, _ defaults: UserDefaults, _ opened: Opened = Opened()) -> AppModel {
        AppModel(
            documents: folder, support: folder.appending(path: "support"),
            text: String(repeating: "Text. ", count: 200), device: FakeDevice(), defaults: defaults,
            transport: FakeTransport([:]),
            open: { entry, kind, options in
                opened.add("\(entry.name) \(kind.rawValue) \(options.precision.rawValue)")
                return FakeEngine([.text("Yes"), .experts([[0]])])
            })
    }

    final class Opened: @unchecked Sendable {
        private let lock = NSLock()
        private var names: [String] = []
        var all: [String] { lock.withLock { names } }
        func add(_ name: String) { lock.withLock { names.append(name) } }
    }

    func withModels(_ body: @MainActor (URL, UserDefaults) async throws -> Void) async throws {
        let suite = "demo-\(UUID().uuidString)"
        let defaults = try #require(UserDefaults(suiteName: suite))
        try await withFolder { folder in
            for name in ["A", "B"] {
                let model = folder.appending(path: name)
                try FileManager.default.createDirectory(at: model, withIntermediateDirectories: true)
                try Data("{}".utf8).write(to: model.appending(path: "config.json"))
            }
            try await body(folder, defaults)
        }
        defaults.removePersistentDomain(forName: suite)
    }

    @Test func theChoiceIsKept() async throws {
        try await withModels { folder, defaults in
            let first = app(folder, defaults)
            #expect(first.selected == nil)  // of two models none is the one
            first.select(first.library.entries[1], .mlx)
            let again = app(folder, defaults)
            #expect(again.selected?.name == "B" && again.engine == .mlx)
            again.select(again.library.entries[0], .coreML)  // which runs packages only
            #expect(again.engine == .cpu)
        }
    }

    @Test func aChatAndAProfileNeverHoldTwoModels() async throws {
        try await withModels { folder, defaults in
            let opened = Opened()
            let app = app(folder, defaults, opened)
            app.select(app.library.entries[0])
            app.chat.draft = "Hi"
            app.chat.send()
            await app.chat.finished()
            #expect(app.experts.tokens == 1 && app.chat.engineDescription != nil)
            app.profile.plan = ProfilePlan(prompts: [40], decoded: 2, rounds: 1)
            app.startProfile()
            #expect(app.chat.engineDescription == nil)  // given back
            await app.profile.finished()
            #expect(app.profile.results[.cpu]?.model == "A")
            #expect(opened.all == ["A cpu int16", "A cpu int8"])
            app.select(app.library.entries[1])
            #expect(app.experts.tokens == 0)
        }
    }

    @Test func aModelThatIsRemovedIsNotInUse() async throws {
        try await withModels { folder, defaults in
            let app = app(folder, defaults)
            app.select(app.library.entries[0])
            app.remove(app.library.entries[0])
            #expect(app.selected == nil && app.library.entries.map(\.name) == ["B"] && !app.chat.canSend)
            app.select(app.library.entries[0])
            try FileManager.default.removeItem(at: folder.appending(path: "B"))  // in the Files app, say
            app.becameActive()
            #expect(app.selected == nil)
        }
    }

    @Test func leavingTheAppEndsAProfileAndKeepsTheChat() async throws {
        try await withModels { folder, defaults in
            let app = app(folder, defaults)
            app.select(app.library.entries[0])
            app.profile.plan = ProfilePlan(prompts: [40], decoded: 2, rounds: 10_000)
            #expect(!app.needsScreen)
            app.startProfile()
            #expect(app.needsScreen)
            app.chat.draft = "Hi"
            app.chat.send()
            await app.chat.finished()
            #expect(app.chat.problem?.contains("profile is being measured") == true)
            app.enteredBackground()
            await app.profile.finished()
            #expect(!app.needsScreen)
            #expect(app.profile.problem?.contains("left the screen") == true)
            app.startProfile()
            app.memoryWarning()
            await app.profile.finished()
            #expect(app.profile.problem?.contains("short of memory") == true)
        }
    }
}
