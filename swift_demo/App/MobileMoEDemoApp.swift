import SwiftUI
import UIKit

@main
struct MobileMoEDemoApp: App {
    @State private var model: AppModel
    @Environment(\.scenePhase) private var phase

    init() {
        let text = ProfileText.read(from: .main)
        _model = State(
            initialValue: AppModel(
                documents: .documentsDirectory, support: .applicationSupportDirectory, text: text,
                device: Device(), defaults: .standard, open: openEngine))
    }

    var body: some Scene {
        WindowGroup {
            RootView()
                .environment(model)
                .onReceive(
                    NotificationCenter.default.publisher(
                        for: UIApplication.didReceiveMemoryWarningNotification)
                ) { _ in model.memoryWarning() }
                .onChange(of: model.needsScreen) { _, needsScreen in
                    UIApplication.shared.isIdleTimerDisabled = needsScreen
                }
        }
        .onChange(of: phase) { _, phase in
            switch phase {
            case .active: model.becameActive()
            case .background: model.enteredBackground()
            default: break
            }
        }
    }
}
