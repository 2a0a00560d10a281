import Foundation

extension Checkpoint {
    /// Reads every scale, norm, router and selection bias; throws naming the tensors whose values are
    /// not finite, or whose scales are too large for -8 x scale in float16.
    ///
    /// No logit would show them all: an expert whose score is NaN is never selected.
    func checkValues() throws {
        var scales: [String] = []
        var damaged: [String] = []
        for (name, tensor) in tensors.sorted(by: { $0.key < $1.key }) where tensor.dtype != "U8" {
            let file = try OpenFile(tensor.path)
            let bad = try countBad(tensor, file)
            guard bad > 0 else { continue }
            if tensor.dtype == "F16" {
                let total = tensor.byteCount / 2
                scales.append("\(name): \(bad) of \(total) scales are NaN, infinite or above 8188")
            } else {
                damaged.append(name)
            }
        }
        if !scales.isEmpty { throw Self.error(folder, scales) }
        guard damaged.isEmpty else {
            let folded = Self.foldedLayers(damaged)
            let more = folded.count > 8 ? " and \(folded.count - 8) more" : ""
            throw MobileMoEError(
                .checkpoint,
                "\(folder): \(folded.prefix(8).joined(separator: ", "))\(more) "
                    + "\(folded.count == 1 ? "has" : "have") values that are not finite: the "
                    + "checkpoint is damaged, or its training diverged. Download it again, or go "
                    + "back to an earlier one.")
        }
    }

    /// Values beyond what their type may hold here, read block by block.
    private func countBad(_ tensor: StoredTensor, _ file: borrowing OpenFile) throws -> Int {
        let block = UnsafeMutableRawBufferPointer.allocate(
            byteCount: min(tensor.byteCount, 1 << 20), alignment: 8)
        defer { block.deallocate() }
        var bad = 0
        var done = 0
        while done < tensor.byteCount {
            let wanted = UnsafeMutableRawBufferPointer(
                rebasing: block.prefix(tensor.byteCount - done))
            guard try file.read(into: wanted, at: tensor.offset + done) == wanted.count else {
                throw MobileMoEError(.checkpoint, "\(tensor.path) became shorter while it was read.")
            }
            // Without their sign floats are ordered as their bits are, infinity and NaN last.
            switch tensor.dtype {
            case "F16": bad += count(wanted, UInt16.self, mask: 0x7FFF, above: 0x6FFF)  // 8188
            case "BF16": bad += count(wanted, UInt16.self, mask: 0x7FFF, above: 0x7F7F)
            default: bad += count(wanted, UInt32.self, mask: 0x7FFF_FFFF, above: 0x7F7F_FFFF)
            }
            done += wanted.count
        }
        return bad
    }
}

private func count<Bits: FixedWidthInteger>(
    _ bytes: UnsafeMutableRawBufferPointer, _ type: Bits.Type, mask: Bits, above most: Bits
) -> Int {
    var bad = 0
    for bits in bytes.bindMemory(to: Bits.self) where bits & mask > most { bad += 1 }
    return bad
}
