import XCTest

/// Starts the app in the simulator, without a model: what a first start shows, and that nothing crashes.
final class ChatUITests: XCTestCase {
    @MainActor
    func testAFirstStartOffersModels() {
        let app = XCUIApplication()
        app.launch()
        XCTAssertTrue(app.textFields["model id"].waitForExistence(timeout: 10))
        app.tabBars.buttons["Chat"].tap()
        XCTAssertTrue(app.buttons["Choose a model"].waitForExistence(timeout: 5))
        app.buttons["Choose a model"].tap()
        XCTAssertTrue(app.textFields["model id"].waitForExistence(timeout: 5))
        app.tabBars.buttons["Profile"].tap()
        XCTAssertTrue(app.buttons["measure"].waitForExistence(timeout: 5))
        XCTAssertFalse(app.buttons["measure"].isEnabled)
        app.tabBars.buttons["Experts"].tap()
        XCTAssertTrue(app.staticTexts["No answer yet"].waitForExistence(timeout: 5))
    }

    @MainActor
    func testAnIdThatIsNoneIsASentence() {
        let app = XCUIApplication()
        app.launch()
        let field = app.textFields["model id"]
        XCTAssertTrue(field.waitForExistence(timeout: 10))
        // At the end of what stands there; the edit menu, which depends on where one touches, is not needed.
        field.coordinate(withNormalizedOffset: CGVector(dx: 0.95, dy: 0.5)).tap()
        field.typeText(String(repeating: XCUIKeyboardKey.delete.rawValue, count: 40) + "nonsense\n")
        app.buttons["Download"].firstMatch.tap()
        let sentence = NSPredicate(format: "label CONTAINS 'is no model id'")
        XCTAssertTrue(app.staticTexts.containing(sentence).firstMatch.waitForExistence(timeout: 5))
    }
}
