import UIKit

/// This phone: its name, heat and battery.
struct Device: DeviceProbe {
    let name: String

    @MainActor
    init() {
        UIDevice.current.isBatteryMonitoringEnabled = true
        name = "\(Self.machine), \(UIDevice.current.systemName) \(UIDevice.current.systemVersion)"
    }

    var thermalState: String {
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: "nominal"
        case .fair: "fair"
        case .serious: "serious"
        case .critical: "critical"
        @unknown default: "unknown"
        }
    }

    var batteryLevel: Double? {
        let level = onMain { UIDevice.current.batteryLevel }
        return level < 0 ? nil : Double(level)  // -1 where it is not known
    }

    var isCharging: Bool? {
        switch onMain({ UIDevice.current.batteryState }) {
        case .unplugged: false
        case .charging, .full: true
        case .unknown: nil
        @unknown default: nil
        }
    }

    /// UIDevice belongs to the main actor, and measuring does not run on it.
    private func onMain<Value: Sendable>(_ read: @MainActor () -> Value) -> Value {
        Thread.isMainThread ? MainActor.assumeIsolated(read) : DispatchQueue.main.sync { MainActor.assumeIsolated(read) }
    }

    /// Apple's identifier, such as iPhone17,1.
    private static var machine: String {
        var system = utsname()
        uname(&system)
        return withUnsafeBytes(of: &system.machine) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    }
}
