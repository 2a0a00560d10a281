import Testing

@testable import DemoViewModels

@MainActor
struct ExpertsTests {
    @Test func useFadesAndCountsStay() {
        let experts = ExpertsViewModel()
        #expect(experts.summary == "No token has been written yet.")
        experts.record([[0, 2], [1, 1]])
        experts.record([[0, 3], [1, 0]])
        #expect(experts.tokens == 2)
        #expect(experts.counts == [[2, 0, 1, 1], [1, 3, 0, 0]])
        let fresh = 1 - ExpertsViewModel.memory
        #expect(abs(experts.use[0][0] - (fresh * ExpertsViewModel.memory + fresh)) < 1e-12)
        #expect(abs(experts.use[0][2] - fresh * ExpertsViewModel.memory) < 1e-12)
        #expect(experts.usedCount(layer: 0) == 3)
        #expect(experts.summary == "2 tokens. A layer used 3 experts on average, layer 1 the most: 3.")
        for _ in 0..<200 { experts.record([[0, 0], [3, 3]]) }
        #expect(experts.use[0][3] < 1e-6)
        experts.reset()
        #expect(experts.use.isEmpty && experts.tokens == 0)
    }
}
