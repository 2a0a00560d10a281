/// `rope_theta` and `rope_scaling` of wherever they stand.
///
/// Before transformers 5: `rope_theta`, and a block `rope_scaling` with `rope_type` (or `type`).
/// Since: one block `rope_parameters` with the theta inside, or one such block for each layer type.
struct RopeSpelling {
    let given: [String: JSON]  // config.json without nulls

    private typealias Block = [(key: String, value: JSON)]

    func fields() throws -> [String: JSON] {
        var thetas = given["rope_theta"].map { [("rope_theta", $0)] } ?? []
        var blocks: [(name: String, block: Block)] = []
        for name in ["rope_scaling", "rope_parameters"] {
            guard let block = given[name] else { continue }
            guard let object = block.object else {
                throw bad(name, block, "it must be an object or null")
            }
            if object.entries.isEmpty { continue }
            var values = try ofFullAttention(name, object)
            if let theta = values.remove("rope_theta") { thetas.append(("\(name).rope_theta", theta)) }
            if let factor = values.remove("partial_rotary_factor"), !factor.equals(.integer(1)) {
                throw bad("\(name).partial_rotary_factor", block, "MobileMoE turns all of each head")
            }
            blocks.append((name, try typed(name, values)))
        }
        if let first = thetas.first, thetas.contains(where: { !$0.1.equals(first.1) }) {
            throw contradiction(thetas)
        }
        if blocks.count == 2, !object(blocks[0].block).equals(object(blocks[1].block)) {
            throw contradiction(blocks.map { ($0.name, object($0.block)) })
        }
        var out: [String: JSON] = [:]
        if let theta = thetas.first { out["rope_theta"] = theta.1 }
        for (name, block) in blocks {
            out["rope_scaling"] = object(try withOriginal(name, block))
        }
        if blocks.isEmpty { _ = try withOriginal("rope_scaling", []) }
        return out
    }

    private func object(_ block: Block) -> JSON { .object(JSON.Object(block)) }

    /// The values of a block; of one with a block for each layer type, those of full attention.
    private func ofFullAttention(_ name: String, _ block: JSON.Object) throws -> Block {
        let values = block.entries.filter { !$0.value.isNull }
        guard values.contains(where: { $0.value.object != nil }) else { return values }
        let chosen = values.first { $0.key == "full_attention" }?.value
        for (key, value) in values where !(chosen.map { value.equals($0) } ?? false) || chosen?.object == nil {
            throw bad(
                "\(name).\(key)", value,
                "every MobileMoE layer is of the type full_attention, and has its block alone")
        }
        return (chosen?.object?.entries ?? []).filter { !$0.value.isNull }
    }

    /// The block with `rope_type`, whose older name is `type`.
    private func typed(_ name: String, _ block: Block) throws -> Block {
        var values = block
        let spelt = ["rope_type", "type"].compactMap { key in
            values.remove(key).map { ("\(name).\(key)", $0) }
        }
        guard let first = spelt.first, let last = spelt.last else {
            guard values.isEmpty else {
                let names = values.map(\.key).sorted().joined(separator: ", ")
                throw configError("\(name) has \(names), but no rope_type.")
            }
            return [("rope_type", .string("default"))]
        }
        guard first.1.equals(last.1) else { throw contradiction(spelt) }
        return [("rope_type", first.1)] + values
    }

    /// The block with `original_max_position_embeddings`, which some files have outside it.
    private func withOriginal(_ name: String, _ block: Block) throws -> Block {
        let field = "original_max_position_embeddings"
        guard let outside = given[field] else { return block }
        let type = block.first { $0.key == "rope_type" }?.value ?? .string("default")
        let isDefault = type.equals(.string("default"))
        let inside: JSON?
        let place: String
        if isDefault {
            inside = given["max_position_embeddings"]
            place = "max_position_embeddings (RoPE is not stretched)"
        } else {
            inside = block.first { $0.key == field }?.value ?? outside
            place = "\(name).\(field)"
        }
        guard let inside, outside.equals(inside) else {
            throw contradiction([(field, outside), (place, inside ?? .null)])
        }
        if isDefault { return block }
        return block.filter { $0.key != field } + [(field, inside)]
    }
}

extension [(key: String, value: JSON)] {
    fileprivate mutating func remove(_ key: String) -> JSON? {
        guard let place = firstIndex(where: { $0.key == key }) else { return nil }
        return remove(at: place).value
    }
}
