import Foundation
import MobileMoE

/// A custom layer's parameters: numbers, texts and truths by name, as the model's file has them.
///
/// Core ML may hand any of them over as a text (coreml/README.md, section 2).
struct LayerParameters {
    /// Which layer it is, for messages: "MobileMoEExperts of layer 3".
    let owner: String
    private let values: [String: Any]

    init(_ values: [String: Any], of className: String) throws {
        let whole = LayerParameters(values: values, owner: className)
        let owner = whole.has("layer") ? "\(className) of layer \(try whole.whole("layer"))" : className
        self.init(values: values, owner: owner)
    }

    private init(values: [String: Any], owner: String) {
        self.values = values
        self.owner = owner
    }

    func has(_ name: String) -> Bool { values[name] != nil }

    func whole(_ name: String) throws -> Int {
        let value = try value(name)
        let number =
            switch value {
            case let text as String: Int(text) ?? double(text).flatMap { Int(exactly: $0) }
            case let number as any BinaryInteger: Int(exactly: number)
            default: double(value).flatMap { Int(exactly: $0) }
            }
        guard let number else { throw wrong(name, value, "a whole number") }
        return number
    }

    /// A whole number that has a meaning as a size: `least` or more, and what fits into the kernel.
    func size(_ name: String, least: Int = 1) throws -> Int {
        let number = try whole(name)
        guard number >= least, number <= Int32.max else {
            throw error("its parameter '\(name)' is \(number); it must be from \(least) on.")
        }
        return number
    }

    func number(_ name: String) throws -> Double {
        let value = try value(name)
        guard let number = double(value), number.isFinite else { throw wrong(name, value, "a number") }
        return number
    }

    func truth(_ name: String) throws -> Bool {
        let value = try value(name)
        if let truth = value as? Bool { return truth }
        switch (value as? String)?.lowercased() {
        case "true", "yes": return true
        case "false", "no": return false
        default: break
        }
        switch double(value) {
        case 1: return true
        case 0: return false
        default: throw wrong(name, value, "true or false")
        }
    }

    func text(_ name: String) throws -> String {
        let value = try value(name)
        guard let text = value as? String else { throw wrong(name, value, "a text") }
        return text
    }

    /// The parameters that every class has and that allow one value.
    func checkVersion(grouped: Bool = true) throws {
        let version = try whole("version")
        guard version == 1 else {
            throw error(
                "it is of version \(version) of the layers' contract, and this code is of version 1: "
                    + "export the model anew, or take the code that came with its exporter.")
        }
        if grouped, try whole("group_size") != INT4.group {
            throw error("its parameter 'group_size' is \(try whole("group_size")), not \(INT4.group).")
        }
    }

    func error(_ sentence: String) -> MobileMoEError {
        MobileMoEError(.checkpoint, "\(owner): \(sentence)")
    }

    private func double(_ value: Any) -> Double? {
        switch value {
        case let text as String: Double(text)
        case let number as Double: number
        case let number as Float: Double(number)
        case let number as any BinaryInteger: Double(number)
        case let number as NSNumber: number.doubleValue
        default: nil
        }
    }

    private func value(_ name: String) throws -> Any {
        guard let value = values[name] else { throw error("it has no parameter '\(name)'.") }
        return value
    }

    private func wrong(_ name: String, _ value: Any, _ kind: String) -> MobileMoEError {
        error("its parameter '\(name)' is '\(value)', which is not \(kind).")
    }
}

/// The published form of INT4: two codes a byte, a float16 scale for each group of a row.
enum INT4 {
    static let group = 32

    /// Entries `NAME_codes` and `NAME_scales` of a matrix [rows, columns] grouped along its columns.
    static func entries(
        _ name: String, _ rows: Int, _ columns: Int, of parameters: LayerParameters, experts: Int = 1
    ) throws -> [LayerEntry] {
        guard columns % group == 0 else {
            throw parameters.error("'\(name)' has \(columns) columns, which is no multiple of \(group).")
        }
        let (values, tooLarge) = (experts * rows).multipliedReportingOverflow(by: columns)
        guard !tooLarge else { throw parameters.error("'\(name)' is too large.") }
        return [
            LayerEntry(name: "\(name)_codes", bytes: values / 2),
            LayerEntry(name: "\(name)_scales", bytes: values / group * 2),
        ]
    }
}
