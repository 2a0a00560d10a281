import Foundation
import Security

/// The Hugging Face token, in the keychain of this device.
enum AccessToken {
    // Computed: Swift 6 takes no stored constant of values that are not Sendable.
    private static var item: [CFString: Any] {
        [kSecClass: kSecClassGenericPassword, kSecAttrService: "huggingface.co", kSecAttrAccount: "token"]
    }

    static func read() -> String? {
        var query = item
        query[kSecReturnData] = true
        var found: CFTypeRef?
        guard SecItemCopyMatching(query as CFDictionary, &found) == errSecSuccess, let data = found as? Data else {
            return nil
        }
        return String(decoding: data, as: UTF8.self)
    }

    /// An empty token removes the one that is kept.
    static func write(_ token: String) {
        SecItemDelete(item as CFDictionary)
        guard !token.isEmpty else { return }
        var entry = item
        entry[kSecValueData] = Data(token.utf8)
        entry[kSecAttrAccessible] = kSecAttrAccessibleWhenUnlockedThisDeviceOnly
        SecItemAdd(entry as CFDictionary, nil)
    }
}
