/// JSON as transformers' `tojson` writes it: Python's `json.dumps` without escapes for letters.
enum TemplateJSON {
    static func text(of value: TemplateValue, _ call: TemplateCall) throws(TemplateError) -> Scalars {
        var indent: Scalars?
        if let value = call.value(1, "indent") {
            if let text = value.scalars {
                indent = text
            } else if let count = value.integer, count < 1000 {
                indent = Array(repeating: " ", count: max(count, 0))
            }
        }
        var separators = (Scalars(indent == nil ? ", " : ","), Scalars(": "))
        if case .list(let items) = call.value(2, "separators"), items.count == 2 {
            separators = (items[0].written, items[1].written)
        }
        let writer = Writer(
            indent: indent, itemEnd: separators.0, keyEnd: separators.1,
            sortsKeys: call.flag(3, "sort_keys"), onlyASCII: call.flag(0, "ensure_ascii"))
        return try writer.text(of: value, depth: 0)
    }

    private struct Writer {
        let indent: Scalars?
        let itemEnd: Scalars
        let keyEnd: Scalars
        let sortsKeys: Bool
        let onlyASCII: Bool

        func text(of value: TemplateValue, depth: Int) throws(TemplateError) -> Scalars {
            switch value {
            case .none: return Scalars("null")
            case .bool(let value): return Scalars(value ? "true" : "false")
            case .integer: return value.written
            case .number(let number):
                return number.isFinite
                    ? value.written : Scalars(number.isNaN ? "NaN" : number < 0 ? "-Infinity" : "Infinity")
            case .text(let text): return quoted(text)
            case .list(let items):
                var parts: [Scalars] = []
                for item in items { parts.append(try text(of: item, depth: depth + 1)) }
                return enclosed(parts, "[", "]", depth)
            case .dictionary(let dictionary):
                var entries = dictionary.entries.map { (quoted($0.key.written), $0.value) }
                if sortsKeys { entries.sort { $0.0.lexicographicallyPrecedes($1.0) } }
                var parts: [Scalars] = []
                for (key, value) in entries { parts.append(key + keyEnd + (try text(of: value, depth: depth + 1))) }
                return enclosed(parts, "{", "}", depth)
            default: throw .failure("Object of type \(value.typeName) is not JSON serializable")
            }
        }

        private func enclosed(
            _ parts: [Scalars], _ open: Unicode.Scalar, _ close: Unicode.Scalar, _ depth: Int
        ) -> Scalars {
            guard let indent, !parts.isEmpty else {
                return [open] + parts.joined(separator: itemEnd) + [close]
            }
            func line(_ depth: Int) -> Scalars { ["\n"] + repeatElement(indent, count: depth).joined() }
            return [open] + line(depth + 1) + parts.joined(separator: itemEnd + line(depth + 1)) + line(depth)
                + [close]
        }

        private func quoted(_ text: Scalars) -> Scalars {
            var result: Scalars = ["\""]
            for scalar in text {
                switch scalar {
                case "\"": result += ["\\", "\""]
                case "\\": result += ["\\", "\\"]
                case "\n": result += ["\\", "n"]
                case "\r": result += ["\\", "r"]
                case "\t": result += ["\\", "t"]
                case "\u{08}": result += ["\\", "b"]
                case "\u{0C}": result += ["\\", "f"]
                case _ where scalar.value < 0x20 || (onlyASCII && scalar.value > 0x7E):
                    for unit in String(Character(scalar)).utf16 {
                        let digits = String(unit, radix: 16)
                        result += Scalars("\\u" + String(repeating: "0", count: 4 - digits.count) + digits)
                    }
                default: result.append(scalar)
                }
            }
            return result + ["\""]
        }
    }
}
