import Foundation
import MobileMoE
import Testing

@testable import DemoViewModels

@MainActor
struct ChatViewModelTests {
    let statistics = AnswerStatistics(
        promptTokens: 9, answerTokens: 2, firstTokenSeconds: 0.1, tokensPerSecond: 20, peakMemoryBytes: 1000)

    func chat(_ folder: URL) -> ChatViewModel {
        ChatViewModel(
            file: ConversationFile(url: folder.appending(path: "support/chat.json")), experts: ExpertsViewModel())
    }

    @Test func anAnswerComesInPiecesAndIsKept() async throws {
        try await withFolder { folder in
            let engine = FakeEngine([.text("Hel"), .text("lo."), .experts([[1], [0]]), .end(statistics)])
            let chat = chat(folder)
            chat.use { engine }
            chat.draft = "  Hi \n"
            chat.send()
            #expect(chat.phase == .waiting && chat.draft.isEmpty)
            await chat.finished()
            #expect(chat.phase == .idle && chat.problem == nil)
            #expect(chat.conversation.turns.map(\.text) == ["Hi", "Hello."])
            #expect(chat.conversation.turns[1].statistics == statistics)
            #expect(chat.engineDescription == engine.description)
            let again = self.chat(folder)
            #expect(again.conversation == chat.conversation)
            again.use { engine }
            again.draft = "More"
            again.send()
            await again.finished()
            #expect(engine.asked[1].map(\.content) == ["Hi", "Hello.", "More"])
            #expect(engine.asked[1].map(\.role) == [.user, .assistant, .user])
        }
    }

    @Test(arguments: [Turn.Interruption.stopped, .leftTheApp, .lowMemory])
    func whatWasWrittenStaysWhenAnAnswerStops(_ reason: Turn.Interruption) async throws {
        try await withFolder { folder in
            let chat = chat(folder)
            var opened = 0
            chat.use(
                { @MainActor in
                    opened += 1
                    return FakeEngine([.text("Once"), .text(" upon")], waitsAfter: 1)
                }, mayNotRunInBackground: true)
            chat.draft = "A story"
            chat.send()
            while chat.phase != .answering { await Task.yield() }
            #expect(!chat.canSend)
            switch reason {
            case .leftTheApp: chat.enterBackground()
            case .lowMemory: chat.memoryWarning()
            default: chat.stop()
            }
            await chat.finished()
            #expect(chat.conversation.turns.last?.text == "Once")
            #expect(chat.conversation.turns.last?.interruption == reason)
            #expect(chat.phase == .idle && chat.problem == nil)
            #expect(self.chat(folder).conversation == chat.conversation)
            chat.draft = "Again"
            chat.send()
            while chat.phase != .answering { await Task.yield() }
            // After a memory warning the model is opened anew.
            #expect(opened == (reason == .lowMemory ? 2 : 1))
            chat.stop()
            await chat.finished()
        }
    }

    @Test func theCPUGoesOnBehindAnotherApp() async throws {
        try await withFolder { folder in
            let chat = chat(folder)
            chat.use({ FakeEngine([.text("a"), .text("b")], waitsAfter: 1) }, mayNotRunInBackground: false)
            chat.draft = "?"
            chat.send()
            while chat.phase != .answering { await Task.yield() }
            chat.enterBackground()
            #expect(chat.phase == .answering)
            chat.stop()
            await chat.finished()
        }
    }

    @Test func anErrorIsASentenceAndTheChatGoesOn() async throws {
        try await withFolder { folder in
            let chat = chat(folder)
            chat.use { throw MobileMoEError(.memory, "The model needs more memory than there is.") }
            chat.draft = "Hi"
            chat.send()
            await chat.finished()
            #expect(chat.problem == "The model needs more memory than there is.")
            #expect(chat.conversation.turns.last?.interruption == .failed)
            #expect(chat.phase == .idle)
            let engine = FakeEngine([.text("Yes")])
            chat.use { engine }
            chat.draft = "And now?"
            chat.send()
            await chat.finished()
            #expect(chat.problem == nil)
            // An answer without a word is no turn for the model.
            #expect(engine.asked[0].map(\.content) == ["Hi", "And now?"])
        }
    }

    @Test func nothingIsSentWithoutWordsOrAModel() async throws {
        try await withFolder { folder in
            let chat = chat(folder)
            chat.draft = "Hi"
            #expect(!chat.canSend)
            chat.use { FakeEngine([]) }
            chat.draft = " \n"
            chat.send()
            #expect(chat.conversation.turns.isEmpty)
        }
    }

    @Test func aChatCanBeClearedWhileItIsWritten() async throws {
        try await withFolder { folder in
            let chat = chat(folder)
            chat.use { FakeEngine([.text("a"), .text("b")], waitsAfter: 1) }
            chat.draft = "?"
            chat.send()
            while chat.phase != .answering { await Task.yield() }
            chat.clear()
            await chat.finished()
            #expect(chat.conversation.turns.isEmpty && chat.phase == .idle)
        }
    }

    @Test func aDamagedFileIsAnEmptyChat() async throws {
        try await withFolder { folder in
            let url = folder.appending(path: "chat.json")
            try Data("{\"turns\": [7]}".utf8).write(to: url)
            #expect(ConversationFile(url: url).read() == Conversation())
        }
    }
}
