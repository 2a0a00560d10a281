import Foundation
import Testing

@testable import MobileMoE

@Test func anErrorShowsItsSentence() {
    let error: any Error = MobileMoEError(.input, "There is no message to answer.")
    #expect(error.localizedDescription == "There is no message to answer.")
    #expect("\(error)" == "There is no message to answer.")
}
