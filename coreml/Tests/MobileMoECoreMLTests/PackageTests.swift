#if os(Linux)
    import CoreML
    import Foundation
    import MobileMoE
    import MobileMoELayers
    import Synchronization
    import Testing

    @testable import MobileMoECoreML

    extension LayerTests {
        /// Packages as they are exported, fed by the loops that an app uses; Core ML is stood in for.
        @Suite(.enabled(if: PackageCase.areGiven, "tests/swift/test_core_ml_packages.py gives packages"))
        struct PackageTests {
            private func opened(
                _ package: PackageCase, _ options: CoreMLOptions = CoreMLOptions()
            ) async throws -> (engine: CoreMLModel, log: CallLog) {
                let log = CallLog()
                FakeModels.make = { _, configuration in
                    if package.layers != nil {
                        precondition(configuration.functionName == nil && configuration.computeUnits == .cpuOnly)
                        return try FakeNetwork(package, log)
                    }
                    precondition(configuration.computeUnits == options.computeUnits)
                    return try FakeProgram(configuration.functionName!, package, log)
                }
                return (try await CoreMLModel(package: package.url, options: options), log)
            }

            /// Each package in each way of running it.
            private func ways() throws -> [(PackageCase, CoreMLOptions)] {
                try PackageCase.all().flatMap { package -> [(PackageCase, CoreMLOptions)] in
                    var (first, second) = (CoreMLOptions(), CoreMLOptions())
                    if package.layers == nil {
                        second.stateSharing = .copied
                    } else {
                        first.layers.expertsOnGPU = (try? GPU.shared()) != nil
                        if package.block > 8 { return [(package, second)] }
                    }
                    return [(package, first), (package, second)]
                }
            }

            private func greedy(_ model: MobileMoEModel, _ prompt: [Int], _ most: Int) async throws -> [Int] {
                var options = GenerationOptions(maxTokens: most)
                options.temperature = 0
                options.ignoresEnd = true
                var tokens: [Int] = []
                for try await step in model.generate(tokens: prompt, options).steps { tokens.append(step.token) }
                return tokens
            }

            @Test func theTextIsTheEngines() async throws {
                for (package, options) in try ways() {
                    let (engine, log) = try await opened(package, options)
                    for (prompt, wanted) in zip(package.prompts, package.greedy) {
                        // A model of its own each time, so that nothing is reused.
                        let model = try await MobileMoEModel(engine: engine, tokenizer: nil)
                        #expect(model.context == package.context)
                        log.calls = []
                        #expect(try await greedy(model, prompt, wanted.count) == wanted)
                        try check(log.calls, prompt, wanted, package)
                    }
                }
            }

            /// Which tokens were fed where: the prompt in blocks, then one by one.
            private func check(
                _ calls: [PackageCall], _ prompt: [Int], _ answer: [Int], _ package: PackageCase
            ) throws {
                let text = prompt + answer
                let ofPrompt = (prompt.count + package.block - 1) / package.block
                #expect(calls.count == ofPrompt + answer.count - 1)
                var next = 0
                for (index, call) in calls.enumerated() {
                    let end = index < ofPrompt ? min(next + package.block, prompt.count) : next + 1
                    let isOne = end - next == 1
                    if package.layers == nil {
                        #expect(call.function == (isOne ? "decode" : "prefill"))
                        let start = isOne ? next : min(next, package.context - package.block)
                        #expect(call.position == start)
                    } else {
                        #expect(call.position == next && call.tokens.count == end - next)
                    }
                    // With the scores of all rows the padding is not told apart.
                    #expect(call.tokens.prefix(end - call.position) == text[call.position..<end])
                    next = end
                }
                #expect(next == text.count - 1)
            }

            @Test func theNextTurnFeedsWhatIsNew() async throws {
                for (package, options) in try ways() where package.context >= 24 {
                    let (engine, log) = try await opened(package, options)
                    let model = try await MobileMoEModel(engine: engine, tokenizer: nil)
                    let cpu = try await MobileMoEModel(engine: package.engine(), tokenizer: nil)
                    let first = Array(package.prompts.last!.prefix(5))
                    let answer = try await greedy(model, first, 4)
                    for prompt in [first + answer + [7, 8, 9], Array(first.prefix(2)) + [11, 12], first] {
                        log.calls = []
                        let text = try await greedy(model, prompt, 3)
                        #expect(try await greedy(cpu, prompt, 3) == text)
                        #expect(log.calls[0].position <= prompt.count)
                    }
                    // Of the first turn's text all but its last token is there.
                    log.calls = []
                    _ = try await greedy(model, first + [30], 1)
                    #expect(log.calls.map(\.position) == [5] && log.calls[0].tokens == [30])
                }
            }

            @Test func aSessionSaysWhatItCannotDo() async throws {
                for (package, options) in try ways() {
                    let (engine, log) = try await opened(package, options)
                    let session = try await engine.makeSession()
                    func told(_ work: () async throws -> Void) async -> String {
                        do {
                            try await work()
                            return "nothing was thrown"
                        } catch let error as MobileMoEError {
                            return error.sentence
                        } catch {
                            return "\(type(of: error))"
                        }
                    }
                    #expect(await told { _ = try await session.feed([]) } == "There is no token to feed.")
                    #expect(await told { _ = try await session.feed([-1]) }.contains("There is a token -1"))
                    let many = Array(repeating: 5, count: package.context + 1)
                    #expect(
                        await told { _ = try await session.feed(many) }
                            == "\(many.count) tokens do not fit into a context of \(package.context).")
                    #expect(await told { try await session.rewind(to: 1) }.contains("Cannot rewind to token 1"))

                    // What is cancelled leaves the session as it was, and ends between two calls.
                    let logits = try await session.feed([3, 4])
                    let calls = log.calls.count
                    let rest = Array(repeating: 6, count: package.context - 2)
                    let task = Mutex<Task<[Float], any Error>?>(nil), isEntered = Atomic(false)
                    let gate = DispatchSemaphore(value: 0)
                    log.beforeEach = {
                        isEntered.store(true, ordering: .sequentiallyConsistent)
                        gate.wait()
                        task.withLock { $0!.cancel() }
                        gate.signal()
                    }
                    let running = Task { try await session.feed(rest) }
                    task.withLock { $0 = running }
                    while !isEntered.load(ordering: .sequentiallyConsistent) { await Task.yield() }
                    let busy = "Another call on this session is running."
                    #expect(await told { _ = try await session.feed([1]) } == busy)
                    #expect(await told { try await session.rewind(to: 0) } == busy)
                    gate.signal()
                    if package.context - 2 > package.block {
                        #expect(await told { _ = try await running.value } == "CancellationError")
                        #expect(log.calls.count == calls + 1)
                    } else {
                        _ = try await running.value
                        try await session.rewind(to: 2)
                    }
                    log.beforeEach = {}
                    #expect(await session.position == 2)
                    try await session.rewind(to: 1)
                    // One token and two of a block round differently on the GPU.
                    #expect(try await difference(session.feed([4]), logits) < 1e-3)
                }
            }

            @Test func aPackageThatIsWrongIsRefused() async throws {
                let package = try PackageCase.all()[0]
                func told(_ url: URL, _ resources: URL? = nil, memory: Int? = nil) async -> String {
                    var options = CoreMLOptions()
                    options.memoryLimit = memory
                    do {
                        _ = try await CoreMLModel(package: url, resources: resources, options: options)
                        return "nothing was thrown"
                    } catch {
                        return "\(error)"
                    }
                }
                #expect(await told(package.url, memory: 1000).contains("of memory at least (weights"))
                let elsewhere = package.url.deletingLastPathComponent().appendingPathComponent("none.mlmodelc")
                #expect(await told(elsewhere).contains("manifest.json cannot be opened"))
                let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
                try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
                defer { try? FileManager.default.removeItem(at: folder) }
                let name = package.url.deletingPathExtension().lastPathComponent
                let path = package.url.deletingLastPathComponent().appendingPathComponent("\(name)-resources/manifest.json")
                let text = try String(contentsOf: path, encoding: .utf8)
                func changed(_ from: String, _ to: String) async throws -> String {
                    let changed = text.replacingOccurrences(of: from, with: to)
                    precondition(changed != text)
                    try changed.write(to: folder.appendingPathComponent("manifest.json"), atomically: true, encoding: .utf8)
                    return await told(package.url, folder)
                }
                #expect(try await changed("\"version\": 1", "\"version\": 2").contains("of version 2"))
                #expect(try await changed("core-ops", "other").contains("the form 'other' is unknown"))
                #expect(try await changed("\"context\": \(package.context)", "\"context\": 1").contains("contradict"))
                #expect(try await changed("\"eos\"", "\"end\"").contains("'tokens.eos' is missing"))
                #expect(try await changed("{", "").contains("manifest.json"))
            }

            /// With the tokenizer and the chat format of the package's resources, and in one state or two.
            @Test func aChatIsThatOfTheCPUEngine() async throws {
                let messages = [ChatMessage(role: .user, content: "What is a list?")]
                let options = GenerationOptions(maxTokens: 4, ignoresEnd: true)
                var chats = 0
                for (package, ways) in try ways() where package.context > 100 {
                    _ = try await opened(package, ways)
                    let model = try await MobileMoEModel(package: package.url, options: ways)
                    let cpu = try await MobileMoEModel(engine: package.engine(), tokenizer: model.tokenizer)
                    let text = try await cpu.chat(messages, options).text
                    #expect(try await model.chat(messages, options).text == text)
                    chats += 1
                }
                #expect(chats == 3)
            }

            @Test func theCodeOfThePageRuns() async throws {
                let messages = [ChatMessage(role: .user, content: "What is a list?")]
                let package = try PackageCase.all().first { $0.layers == nil && $0.context > 100 }!
                let log = CallLog()
                FakeModels.make = { try FakeProgram($1.functionName!, package, log) }
                let model = try await openWithTwoStates(package.url)
                let cpu = try await MobileMoEModel(engine: package.engine(), tokenizer: model.tokenizer)
                let options = GenerationOptions(maxTokens: 8)
                let text = try await model.chat(messages, options).text
                #expect(try await cpu.chat(messages, options).text == text)
                await #expect(throws: CocoaError.self) { try await openPackage("none") }
            }

            @Test func aPackageIsCompiledOnce() async throws {
                let package = try PackageCase.all()[0]
                let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
                defer { try? FileManager.default.removeItem(at: folder) }
                try FileManager.default.createDirectory(
                    at: folder.appendingPathComponent("Z.mlpackage"), withIntermediateDirectories: true)
                let name = package.url.deletingPathExtension().lastPathComponent
                let resources = package.url.deletingLastPathComponent().appendingPathComponent("\(name)-resources")
                let loaded = Mutex<[URL]>([])
                FakeModels.make = { url, configuration in
                    loaded.withLock { $0.append(url) }
                    return try FakeProgram(configuration.functionName!, package, CallLog())
                }
                for _ in 0..<2 {
                    _ = try await CoreMLModel(
                        package: folder.appendingPathComponent("Z.mlpackage"), resources: resources)
                }
                let kept = folder.appendingPathComponent("Z.mlmodelc").path
                #expect(loaded.withLock { $0.map(\.path) } == Array(repeating: kept, count: 4))
            }
        }
    }
#endif
