import SwiftUI

struct RootView: View {
    @Environment(AppModel.self) private var model
    @State private var tab = Tab.chat

    enum Tab { case chat, profile, experts, models }

    var body: some View {
        TabView(selection: $tab) {
            ChatView(chooseModel: { tab = .models })
                .tabItem { Label("Chat", systemImage: "bubble.left.and.bubble.right") }
                .tag(Tab.chat)
            ProfileView()
                .tabItem { Label("Profile", systemImage: "gauge.with.needle") }
                .tag(Tab.profile)
            ExpertsView()
                .tabItem { Label("Experts", systemImage: "square.grid.3x3.fill") }
                .tag(Tab.experts)
            ModelsView()
                .tabItem { Label("Models", systemImage: "shippingbox") }
                .tag(Tab.models)
        }
        .onAppear { if model.selected == nil { tab = .models } }
    }
}

/// Shows a sentence about what went wrong until it is dismissed.
struct ProblemAlert: ViewModifier {
    @Binding var problem: String?

    func body(content: Content) -> some View {
        content.alert(
            "That did not work", isPresented: Binding(get: { problem != nil }, set: { if !$0 { problem = nil } })
        ) {
            Button("OK") { problem = nil }
        } message: {
            Text(problem ?? "")
        }
    }
}

extension View {
    func showing(problem: Binding<String?>) -> some View { modifier(ProblemAlert(problem: problem)) }
}
