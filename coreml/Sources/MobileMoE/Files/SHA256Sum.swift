import Foundation

#if canImport(CryptoKit)
    import CryptoKit
#endif

/// SHA-256 in lower-case hexadecimal: Apple's where there is one, which is several times as fast.
public enum SHA256Sum {
    public static func of(_ pieces: UnsafeRawBufferPointer...) -> String {
        #if canImport(CryptoKit)
            var hash = SHA256()
            for piece in pieces { hash.update(bufferPointer: piece) }
            return hexadecimal(hash.finalize())
        #else
            var hash = PortableSHA256()
            for piece in pieces { hash.update(piece) }
            return hexadecimal(hash.finish())
        #endif
    }

    static func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
        let digits = Array("0123456789abcdef".utf8)
        return String(
            decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
    }
}

/// FIPS 180-4, section 6.2.
struct PortableSHA256 {
    // Bits behind the point of the cube roots of the first 64 primes, and of the square roots of 8.
    private static let constants = primes.map { bitsBehindThePoint(cbrt($0)) }
    private var state = primes.prefix(8).map { bitsBehindThePoint($0.squareRoot()) }
    private var tail: [UInt8] = []
    private var length: UInt64 = 0
    private var words = [UInt32](repeating: 0, count: 64)

    mutating func update(_ bytes: UnsafeRawBufferPointer) {
        length += UInt64(bytes.count)
        var rest = bytes[...]
        if !tail.isEmpty {
            let taken = rest.prefix(64 - tail.count)
            tail += taken
            rest = rest.dropFirst(taken.count)
            guard tail.count == 64 else { return }
            let block = tail
            block.withUnsafeBytes { compress($0, 1) }
            tail.removeAll()
        }
        let blocks = rest.count / 64
        compress(UnsafeRawBufferPointer(rebasing: rest), blocks)
        tail += rest.dropFirst(blocks * 64)
    }

    mutating func finish() -> [UInt8] {
        let bits = length * 8
        let zeros = (119 - Int(length % 64)) % 64
        let end = [0x80] + [UInt8](repeating: 0, count: zeros)
            + (0..<8).map { UInt8(truncatingIfNeeded: bits >> (56 - 8 * $0)) }
        end.withUnsafeBytes { update($0) }
        return state.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (24 - 8 * $0)) } }
    }

    private mutating func compress(_ bytes: UnsafeRawBufferPointer, _ blocks: Int) {
        Self.constants.withUnsafeBufferPointer { k in
            words.withUnsafeMutableBufferPointer { w in
                for block in 0..<blocks {
                    for i in 0..<16 {
                        w[i] = UInt32(
                            bigEndian: bytes.loadUnaligned(fromByteOffset: block * 64 + i * 4, as: UInt32.self))
                    }
                    for i in 16..<64 {
                        let a = w[i - 15], b = w[i - 2]
                        let s0 = rotated(a, 7) ^ rotated(a, 18) ^ (a >> 3)
                        let s1 = rotated(b, 17) ^ rotated(b, 19) ^ (b >> 10)
                        w[i] = w[i - 16] &+ s0 &+ w[i - 7] &+ s1
                    }
                    var (a, b, c, d) = (state[0], state[1], state[2], state[3])
                    var (e, f, g, h) = (state[4], state[5], state[6], state[7])
                    for i in 0..<64 {
                        let s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)
                        let t1 = h &+ s1 &+ ((e & f) ^ (~e & g)) &+ k[i] &+ w[i]
                        let s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)
                        let t2 = s0 &+ ((a & b) ^ (a & c) ^ (b & c))
                        (h, g, f, e) = (g, f, e, d &+ t1)
                        (d, c, b, a) = (c, b, a, t1 &+ t2)
                    }
                    for (i, word) in [a, b, c, d, e, f, g, h].enumerated() { state[i] &+= word }
                }
            }
        }
    }
}

private let primes = (2...311).filter { n in !(2..<n).contains { n % $0 == 0 } }.map(Double.init)

private func bitsBehindThePoint(_ root: Double) -> UInt32 {
    UInt32((root - root.rounded(.down)) * 4_294_967_296)
}

private func rotated(_ word: UInt32, _ by: UInt32) -> UInt32 { (word >> by) | (word << (32 - by)) }
