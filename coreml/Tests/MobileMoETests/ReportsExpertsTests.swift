import Testing

@testable import MobileMoE

struct ReportsExpertsTests {
    @Test func theExpertsOfTheLastTokenAreKnown() async throws {
        let folder = try TinyCheckpoint().write()
        let session = try CPUEngine(folder: folder.url, options: CPUOptions(precision: .exact)).session()
        #expect(session.chosenExperts() == nil)
        _ = try await session.feed([1, 2, 3])
        let together = try #require(session.chosenExperts())
        #expect(together.count == 2 && together.allSatisfy { Set($0).count == 2 && Set($0).isSubset(of: 0..<5) })
        try session.rewind(to: 2)
        #expect(session.chosenExperts() == nil)
        _ = try await session.feed([3])
        #expect(session.chosenExperts() == together)
    }
}
