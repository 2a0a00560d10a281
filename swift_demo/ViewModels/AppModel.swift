import Foundation
import MobileMoE
import Observation

/// Opens a model with an engine; the app brings those of Apple's frameworks.
typealias EngineFactory = @Sendable (ModelEntry, EngineKind, CPUOptions) async throws -> any DemoEngine

/// The whole app: the models on the device, the one in use, and what each screen shows.
@MainActor
@Observable
final class AppModel {
    let library: ModelLibrary
    let chat: ChatViewModel
    let profile: ProfileViewModel
    let experts: ExpertsViewModel
    private(set) var selected: ModelEntry?
    private(set) var engine = EngineKind.cpu
    /// Of the CPU kernel in the profile; 2 threads and 8-bit activations are the paper's.
    var profileThreads = 2
    var profilePrecision = CPUOptions.Precision.int8

    @ObservationIgnored private let open: EngineFactory
    @ObservationIgnored private let defaults: UserDefaults

    /// `documents`: where models lie. `support`: what the app keeps for itself. `text`: for the profile's prompts.
    init(
        documents: URL, support: URL, text: String, device: any DeviceProbe, defaults: UserDefaults,
        transport: any Transport = URLSessionTransport(), open: @escaping EngineFactory
    ) {
        self.open = open
        self.defaults = defaults
        library = ModelLibrary(folder: documents, transport: transport)
        experts = ExpertsViewModel()
        chat = ChatViewModel(
            file: ConversationFile(url: support.appending(path: "conversation.json")), experts: experts)
        profile = ProfileViewModel(text: text, device: device)
        library.refresh()
        let engine = defaults.string(forKey: "engine").flatMap(EngineKind.init)
        if let entry = library.entries.first(where: { $0.name == defaults.string(forKey: "model") }) {
            select(entry, engine)
        } else if let only = library.entries.first, library.entries.count == 1 {
            select(only, engine)
        }
    }

    /// The model that is chatted with from now on; `engine`: nil for the first that runs it.
    func select(_ entry: ModelEntry?, _ engine: EngineKind? = nil) {
        profile.stop()
        experts.reset()
        selected = entry
        guard let entry else { return chat.use(nil) }
        self.engine = engine.flatMap { entry.engines.contains($0) ? $0 : nil } ?? entry.engines[0]
        defaults.set(entry.name, forKey: "model")
        defaults.set(self.engine.rawValue, forKey: "engine")
        chat.use(chatOpener(entry, self.engine), mayNotRunInBackground: self.engine.mayNotRunInBackground)
    }

    func remove(_ entry: ModelEntry) {
        if selected == entry { select(nil) }
        library.remove(entry)
    }

    /// A profile or a download goes on, which would stop if the screen locked by itself.
    var needsScreen: Bool { profile.isRunning || library.downloads.contains { $0.isRunning } }

    /// Measures the model in use with the engine in use. The chat's own copy is given back first: two
    /// would not fit.
    func startProfile() {
        guard let selected else { return }
        chat.use(chatOpener(selected, engine), mayNotRunInBackground: engine.mayNotRunInBackground)
        var options = CPUOptions()
        options.threads = profileThreads
        options.precision = profilePrecision
        profile.start(
            engine, model: selected.name, threads: profileThreads, open: opener(selected, engine, options))
    }

    func becameActive() {
        library.refresh()
        if let selected, !library.entries.contains(selected) { select(nil) }
    }

    func enteredBackground() {
        chat.enterBackground()
        profile.interrupt(because: "The profile stopped when the app left the screen: its figures would be of a device that saves power.")
    }

    func memoryWarning() {
        chat.memoryWarning()
        profile.interrupt(because: "The profile stopped because the device ran short of memory. Choose a smaller model or shorter prompts.")
    }

    /// Refuses during a profile: a second model might not fit, and its answer would spoil the figures.
    private func chatOpener(
        _ entry: ModelEntry, _ engine: EngineKind
    ) -> @Sendable () async throws -> any DemoEngine {
        let open = opener(entry, engine)
        return { [profile] in
            guard await !profile.isRunning else {
                throw MobileMoEError(.busy, "The profile is being measured: stop it, or wait for its end.")
            }
            return try await open()
        }
    }

    private func opener(
        _ entry: ModelEntry, _ engine: EngineKind, _ options: CPUOptions = CPUOptions()
    ) -> @Sendable () async throws -> any DemoEngine {
        { [open] in try await open(entry, engine, options) }
    }
}
