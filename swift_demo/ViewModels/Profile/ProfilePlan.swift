/// The paper's grid: prompts of growing length, and tokens after each.
struct ProfilePlan: Codable, Equatable, Sendable {
    /// Tokens of the prompts.
    var prompts = [256, 512, 1024, 2048, 4096, 8192]
    /// Tokens that are decoded after each prompt.
    var decoded = 32
    /// How often everything is measured; what counts is the median. A warm-up comes before.
    var rounds = 5

    /// The prompts that an engine has room for, and those that it does not.
    func split(context: Int) -> (fitting: [Int], leftOut: [Int]) {
        let sorted = Set(prompts).filter { $0 > 0 }.sorted()
        return (sorted.filter { $0 + decoded <= context }, sorted.filter { $0 + decoded > context })
    }
}
