import SwiftUI

struct ChatView: View {
    @Environment(AppModel.self) private var model
    let chooseModel: () -> Void
    @FocusState private var isTyping: Bool
    @State private var showsOptions = false

    var body: some View {
        @Bindable var chat = model.chat
        NavigationStack {
            Group {
                if model.selected == nil {
                    ContentUnavailableView {
                        Label("No model yet", systemImage: "shippingbox")
                    } description: {
                        Text("Download one, or add one from Files.")
                    } actions: {
                        Button("Choose a model", action: chooseModel).buttonStyle(.borderedProminent)
                    }
                } else {
                    transcript
                }
            }
            .navigationTitle(model.selected?.name ?? "MobileMoE")
            .navigationBarTitleDisplayMode(.inline)
            .toolbar {
                ToolbarItem(placement: .topBarLeading) { EngineMenu() }
                ToolbarItemGroup(placement: .topBarTrailing) {
                    Button("Options", systemImage: "slider.horizontal.3") { showsOptions = true }
                    Button("New chat", systemImage: "square.and.pencil") { chat.clear() }
                        .disabled(chat.conversation.turns.isEmpty)
                }
            }
            .sheet(isPresented: $showsOptions) { AnswerOptionsView(options: $chat.options) }
            .showing(problem: $chat.problem)
        }
    }

    private var transcript: some View {
        @Bindable var chat = model.chat
        return ScrollView {
            LazyVStack(alignment: .leading, spacing: 12) {
                ForEach(chat.conversation.turns) { turn in
                    TurnView(turn: turn, isWaiting: turn.id == chat.conversation.turns.last?.id && chat.phase == .waiting)
                }
            }
            .padding()
        }
        .defaultScrollAnchor(.bottom)
        .scrollDismissesKeyboard(.interactively)
        .safeAreaInset(edge: .bottom) {
            HStack(alignment: .bottom) {
                TextField("Message", text: $chat.draft, axis: .vertical)
                    .lineLimit(1...6)
                    .focused($isTyping)
                    .textFieldStyle(.roundedBorder)
                    .accessibilityIdentifier("message")
                if chat.isBusy {
                    Button("Stop", systemImage: "stop.circle.fill") { chat.stop() }
                        .accessibilityHint("Ends the answer; what is written stays.")
                } else {
                    Button("Send", systemImage: "arrow.up.circle.fill") { chat.send() }
                        .disabled(!chat.canSend)
                        .accessibilityIdentifier("send")
                }
            }
            .labelStyle(.iconOnly)
            .font(.title)
            .padding(.horizontal)
            .padding(.vertical, 8)
            .background(.bar)
        }
    }
}

/// The engines that run the model in use.
struct EngineMenu: View {
    @Environment(AppModel.self) private var model

    var body: some View {
        if let selected = model.selected {
            Picker(
                "Engine", selection: Binding(get: { model.engine }, set: { model.select(selected, $0) })
            ) {
                ForEach(selected.engines) { Text($0.title).tag($0) }
            }
            .pickerStyle(.menu)
            .accessibilityIdentifier("engine")
        }
    }
}

private struct TurnView: View {
    let turn: Turn
    let isWaiting: Bool

    var body: some View {
        VStack(alignment: turn.isAnswer ? .leading : .trailing, spacing: 4) {
            if isWaiting {
                ProgressView().accessibilityLabel("Reading the question")
            }
            if !turn.text.isEmpty {
                Text(turn.text)
                    .textSelection(.enabled)
                    .padding(10)
                    .background(
                        turn.isAnswer ? AnyShapeStyle(.quaternary) : AnyShapeStyle(.tint.opacity(0.2)),
                        in: .rect(cornerRadius: 14))
            }
            if let interruption = turn.interruption {
                Text(interruption.sentence).font(.caption).foregroundStyle(.secondary)
            }
            if let statistics = turn.statistics {
                StatisticsView(statistics: statistics)
            }
        }
        .frame(maxWidth: .infinity, alignment: turn.isAnswer ? .leading : .trailing)
        .accessibilityElement(children: .combine)
        .accessibilityLabel(turn.isAnswer ? "Answer" : "You")
        .accessibilityValue(turn.text)
    }
}

private struct StatisticsView: View {
    let statistics: AnswerStatistics

    var body: some View {
        HStack(spacing: 10) {
            Label(String(format: "%.2f s", statistics.firstTokenSeconds), systemImage: "hourglass")
                .accessibilityLabel(String(format: "First token after %.2f seconds", statistics.firstTokenSeconds))
            if let rate = statistics.tokensPerSecond {
                Label(String(format: "%.1f tokens/s", rate), systemImage: "speedometer")
            }
            Label(statistics.peakMemoryBytes.formattedBytes, systemImage: "memorychip")
                .accessibilityLabel("Peak memory \(statistics.peakMemoryBytes.formattedBytes)")
        }
        .font(.caption)
        .foregroundStyle(.secondary)
    }
}

private struct AnswerOptionsView: View {
    @Binding var options: AnswerOptions
    @Environment(\.dismiss) private var dismiss

    var body: some View {
        NavigationStack {
            Form {
                Section {
                    LabeledContent("Temperature", value: options.temperature, format: .number.precision(.fractionLength(1)))
                    Slider(value: $options.temperature, in: 0...1.5, step: 0.1) { Text("Temperature") }
                } footer: {
                    Text("0 takes the likeliest word always.")
                }
                Section {
                    LabeledContent("Top p", value: options.topP, format: .number.precision(.fractionLength(2)))
                    Slider(value: $options.topP, in: 0.05...1, step: 0.05) { Text("Top p") }
                    Stepper("At most \(options.maxTokens) tokens", value: $options.maxTokens, in: 32...4096, step: 32)
                }
            }
            .navigationTitle("Answers")
            .navigationBarTitleDisplayMode(.inline)
            .toolbar { Button("Done") { dismiss() } }
        }
        .presentationDetents([.medium])
    }
}
