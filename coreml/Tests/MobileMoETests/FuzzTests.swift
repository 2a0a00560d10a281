import Foundation
import Testing

@testable import MobileMoE

/// Damaged folders: each is refused with a sentence or runs; none ends the process.
///
/// `MOBILEMOE_FUZZ_SECONDS=600 swift test --filter FuzzTests` goes on for ten minutes.
@Suite struct FuzzTests {
    @Test func damagedFolders() async throws {
        let seconds = ProcessInfo.processInfo.environment["MOBILEMOE_FUZZ_SECONDS"].flatMap(Double.init)
        let seed: UInt64 = seconds == nil ? 11 : .random(in: 0 ... .max)
        let start = ContinuousClock.now
        let whole = try [TinyCheckpoint().files(), TinyCheckpoint().files(shards: true)]
        let folders = try whole.map { try TemporaryFolder($0) }
        var random = SplitMix64(state: seed)
        var refused = 0
        var count = 0
        while seconds.map({ (ContinuousClock.now - start).seconds < $0 }) ?? (count < 2000) {
            count += 1
            let which = Int(random.next() % 2)
            let name = whole[which].keys.sorted()[Int(random.next() % UInt64(whole[which].count))]
            let original = whole[which][name]!
            let damaged = mutated(original, isWeights: name.hasSuffix(".safetensors"), &random)
            try folders[which].write(damaged, name)
            do {
                let options = CPUOptions(precision: .int8, threads: 1, memoryLimit: 1 << 30)
                let session = try CPUEngine(folder: folders[which].url, options: options).session(context: nil)
                _ = try await session.feed([1, 5, 9])
            } catch let error as MobileMoEError {
                refused += 1
                #expect(!error.sentence.isEmpty, "seed \(seed), mutation \(count)")
            }
            try folders[which].write(original, name)
        }
        #expect(refused > count / 3)
    }

    /// One to four changes, most of them where a file says what is in it.
    private func mutated(
        _ original: [UInt8], isWeights: Bool, _ random: inout SplitMix64
    ) -> [UInt8] {
        var bytes = original
        func below(_ limit: Int) -> Int { Int(random.next() % UInt64(max(1, limit))) }
        for _ in 0...below(4) {
            guard !bytes.isEmpty else { break }
            let head = isWeights && below(8) > 0 ? min(bytes.count, 6000) : bytes.count
            let place = below(head)
            switch below(8) {
            case 0: bytes[place] ^= 1 << UInt8(below(8))
            case 1: bytes[place] = UInt8(below(256))
            case 2: bytes.remove(at: place)
            case 3: bytes.insert(UInt8(below(256)), at: place)
            case 4: bytes.removeLast(below(bytes.count))
            case 5: bytes += (0..<below(64)).map { _ in UInt8(below(256)) }
            case 6:  // another number
                guard let digit = bytes[place...].firstIndex(where: { (48...57).contains($0) }) else { break }
                let numbers = ["0", "-1", "18446744073709551616", "9223372036854775807", "1e400", "7", "32"]
                bytes.replaceSubrange(digit...digit, with: Array(numbers[below(numbers.count)].utf8))
            default:  // a piece of it, elsewhere
                let end = min(bytes.count, place + below(40))
                bytes.insert(contentsOf: bytes[place..<end], at: below(head))
            }
        }
        return bytes
    }
}
