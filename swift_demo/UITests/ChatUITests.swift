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
        field.tap()
        field.press(forDuration: 1.2)
        app.menuItems["Select All"].tap()
        field.typeText("nonsense")
        app.buttons["Download"].firstMatch.tap()
        let sentence = NSPredicate(format: "label CONTAINS 'is no model id'")
        XCTAssertTrue(app.staticTexts.containing(sentence).firstMatch.waitForExistence(timeout: 5))
    }
}
