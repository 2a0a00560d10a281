import Charts
import MobileMoE
import SwiftUI

struct ProfileView: View {
    @Environment(AppModel.self) private var model

    var body: some View {
        @Bindable var profile = model.profile
        @Bindable var model = model
        NavigationStack {
            List {
                Section {
                    EngineMenu()
                    if model.engine == .cpu {
                        Stepper("\(model.profileThreads) threads", value: $model.profileThreads, in: 1...8)
                        Picker("Activations", selection: $model.profilePrecision) {
                            ForEach(CPUOptions.Precision.allCases, id: \.self) { Text($0.rawValue).tag($0) }
                        }
                    }
                    Stepper("\(profile.plan.rounds) rounds", value: $profile.plan.rounds, in: 1...20)
                    if let progress = profile.progress {
                        ProgressView(value: Double(progress.done), total: Double(progress.total)) { Text(progress.doing) }
                        Button("Stop", role: .destructive) { profile.stop() }
                    } else {
                        Button("Measure") { model.startProfile() }
                            .disabled(model.selected == nil)
                            .accessibilityIdentifier("measure")
                    }
                } footer: {
                    Text("Prompts of \(profile.plan.prompts.map(String.init).joined(separator: ", ")) tokens of real text, \(profile.plan.decoded) tokens after each. Keep the app on the screen, and the phone off the charger if the battery is to count.")
                }
                if !profile.points.isEmpty {
                    Section("Decoding, tokens a second") {
                        Chart(profile.points) { point in
                            LineMark(x: .value("Prompt", point.prompt), y: .value("Tokens/s", point.decodeRate))
                                .foregroundStyle(by: .value("Engine", point.series))
                            PointMark(x: .value("Prompt", point.prompt), y: .value("Tokens/s", point.decodeRate))
                                .foregroundStyle(by: .value("Engine", point.series))
                        }
                        .chartXScale(type: .log)
                        .frame(height: 240)
                    }
                }
                ForEach(EngineKind.allCases) { kind in
                    if let results = profile.results[kind] {
                        FiguresSection(kind: kind, results: results, rows: profile.rows(of: kind))
                    }
                }
            }
            .navigationTitle("Profile")
            .showing(problem: $profile.problem)
        }
    }
}

private struct FiguresSection: View {
    @Environment(AppModel.self) private var model
    let kind: EngineKind
    let results: BenchResults
    let rows: [ProfileViewModel.Row]

    var body: some View {
        Section {
            Grid(alignment: .trailing, horizontalSpacing: 12, verticalSpacing: 6) {
                GridRow {
                    Text("Prompt")
                    Text("First token")
                    Text("Prefill")
                    Text("Decode")
                    Text("Peak")
                }
                .font(.caption.bold())
                ForEach(rows) { row in
                    GridRow {
                        Text("\(row.prompt)")
                        figure(String(format: "%.2f s", row.firstToken), paper: row.paperFirstToken.map { String(format: "%.2f s", $0) })
                        figure(String(format: "%.0f/s", row.prefillRate), paper: nil)
                        figure(String(format: "%.1f/s", row.decodeRate), paper: row.paperDecodeRate.map { String(format: "%.1f/s", $0) })
                        Text(row.peakBytes.formattedBytes)
                    }
                    .font(.caption.monospacedDigit())
                    .accessibilityElement(children: .combine)
                }
            }
            if let left = results.engines.first?.leftOut, !left.isEmpty {
                Text("No room in the model's context: \(left.map(String.init).joined(separator: ", ")).").font(.caption)
            }
            if let device = results.device {
                Text("Heat: \(device.thermalStates.joined(separator: ", ")).").font(.caption)
            }
            if let energy = results.device?.energy { Text("Energy: \(energy).").font(.caption) }
            if let file = model.profile.files[kind] {
                ShareLink("Share as JSON", item: file)
            }
        } header: {
            Text("\(kind.title), \(results.model), \(results.rounds) rounds")
        } footer: {
            Text("Medians. Below: MobileMoE-S on the paper's iPhone 16 Pro, CPU.")
        }
    }

    private func figure(_ text: String, paper: String?) -> some View {
        VStack(alignment: .trailing) {
            Text(text)
            if let paper {
                Text(paper).foregroundStyle(.secondary).accessibilityLabel("In the paper \(paper)")
            }
        }
    }
}
