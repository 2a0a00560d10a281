import SwiftUI

struct ExpertsView: View {
    @Environment(AppModel.self) private var model

    var body: some View {
        let experts = model.experts
        NavigationStack {
            Group {
                if experts.tokens == 0 {
                    ContentUnavailableView(
                        "No answer yet", systemImage: "square.grid.3x3.fill",
                        description: Text("While an answer is written, this shows which experts each layer uses. The CPU kernel tells; other engines do not."))
                } else {
                    VStack(alignment: .leading) {
                        picture(experts.use)
                        Text("A row is a layer, a column an expert. Bright: used by the last tokens.")
                            .font(.caption)
                            .foregroundStyle(.secondary)
                        Text("\(experts.tokens) tokens").font(.caption.monospacedDigit())
                    }
                    .padding()
                }
            }
            .navigationTitle("Experts")
            .toolbar {
                Button("Reset", systemImage: "arrow.counterclockwise") { experts.reset() }
                    .disabled(experts.tokens == 0)
            }
        }
    }

    private func picture(_ use: [[Double]]) -> some View {
        Canvas { context, size in
            guard let columns = use.first?.count, columns > 0 else { return }
            let cell = CGSize(width: size.width / CGFloat(columns), height: size.height / CGFloat(use.count))
            for (layer, row) in use.enumerated() {
                for (expert, value) in row.enumerated() {
                    let square = CGRect(
                        x: CGFloat(expert) * cell.width, y: CGFloat(layer) * cell.height,
                        width: max(cell.width - 1, 1), height: max(cell.height - 1, 1))
                    context.fill(Path(square), with: .color(.accentColor.opacity(0.08 + 0.92 * min(1, value * 3))))
                }
            }
        }
        .accessibilityElement()
        .accessibilityLabel("Experts in use")
        .accessibilityValue(model.experts.summary)
    }
}
