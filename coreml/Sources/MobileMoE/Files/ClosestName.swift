/// " (did you mean 'x'?)" for the nearest of `known`, or nothing; Python's difflib decides alike.
package func didYouMean(
    _ name: String, _ known: some Sequence<String>, cutoff: Double = 0.6,
    words: String = "did you mean"
) -> String {
    closest(name, known, cutoff: cutoff).map { " (\(words) '\($0)'?)" } ?? ""
}

package func closest(
    _ name: String, _ known: some Sequence<String>, cutoff: Double = 0.6
) -> String? {
    let letters = Array(name.unicodeScalars)
    var best: (ratio: Double, name: String)?
    for candidate in known {
        let other = Array(candidate.unicodeScalars)
        let total = letters.count + other.count
        guard total > 0, 2 * Double(min(letters.count, other.count)) >= cutoff * Double(total)
        else { continue }
        let ratio = 2 * Double(matches(other[...], letters[...])) / Double(total)
        if ratio >= cutoff, best == nil || (ratio, candidate) > (best!.ratio, best!.name) {
            best = (ratio, candidate)
        }
    }
    return best?.name
}

/// How many letters the two have in common: those of the longest common piece, and of what lies
/// before and behind it.
private func matches(_ a: ArraySlice<Unicode.Scalar>, _ b: ArraySlice<Unicode.Scalar>) -> Int {
    var (length, atA, atB) = (0, a.startIndex, b.startIndex)
    var ends: [Int: Int] = [:]  // place in b -> length of the common piece that ends there
    for i in a.indices {
        var next: [Int: Int] = [:]
        for j in b.indices where a[i] == b[j] {
            let size = (ends[j - 1] ?? 0) + 1
            next[j] = size
            if size > length { (length, atA, atB) = (size, i - size + 1, j - size + 1) }
        }
        ends = next
    }
    guard length > 0 else { return 0 }
    return length + matches(a[a.startIndex..<atA], b[b.startIndex..<atB])
        + matches(a[(atA + length)...], b[(atB + length)...])
}
