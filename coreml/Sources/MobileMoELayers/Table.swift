import Foundation
import MobileMoE
import Synchronization

/// The embedding's weights, which the head multiplies by too (coreml/README.md, section 6).
final class Table: Sendable {
    let codes: WeightBytes
    let scales: WeightBytes

    init(codes: WeightBytes, scales: WeightBytes) {
        self.codes = codes
        self.scales = scales
    }

    private struct Holder { weak var table: Table? }
    private static let tables = Mutex([String: [Holder]]())

    /// Any living table of this name: the name is the content.
    static func find(_ name: String) -> Table? {
        tables.withLock { $0[name.lowercased()]?.lazy.compactMap(\.table).first }
    }

    static func add(_ table: Table, _ name: String) {
        tables.withLock { tables in
            // Those that went away leave, each by itself: other copies of the model keep theirs.
            tables = tables.mapValues { $0.filter { $0.table != nil } }.filter { !$0.value.isEmpty }
            tables[name.lowercased(), default: []].append(Holder(table: table))
        }
    }
}

/// Keeps a layer's table to be found for as long as the layer lives.
final class TableRegistration: @unchecked Sendable {  // `table` is set while the model loads
    private let name: String
    private var table: Table?

    init(_ name: String) { self.name = name }

    func publish(_ table: Table) {
        self.table = table
        Table.add(table, name)
    }
}
