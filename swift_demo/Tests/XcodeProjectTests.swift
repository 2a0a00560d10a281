import Foundation
import Testing

/// The app's project file, which no Linux machine opens: it is read as the property list that it is.
struct XcodeProjectTests {
    static let folder = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()

    static func objects() throws -> [String: [String: Any]] {
        let data = try Data(contentsOf: folder.appending(path: "MobileMoEDemo.xcodeproj/project.pbxproj"))
        var format = PropertyListSerialization.PropertyListFormat.xml
        let list = try PropertyListSerialization.propertyList(from: data, format: &format)
        #expect(format == .openStep)
        let root = try #require(list as? [String: Any])
        #expect(root["objectVersion"] as? String == "77")  // Xcode 16, which knows synchronised folders
        let objects = try #require(root["objects"] as? [String: [String: Any]])
        let project = try #require(root["rootObject"] as? String)
        #expect(objects[project]?["isa"] as? String == "PBXProject")
        return objects
    }

    @Test func everyReferenceIsAnObject() throws {
        let objects = try Self.objects()
        func strings(_ value: Any) -> [String] {
            switch value {
            case let text as String: [text]
            case let list as [Any]: list.flatMap(strings)
            case let table as [String: Any]: table.values.flatMap(strings)
            default: []
            }
        }
        let isId = /[0-9A-F]{24}/
        var used = Set<String>()
        for (_, object) in objects {
            for text in strings(object) where text.wholeMatch(of: isId) != nil {
                #expect(objects[text] != nil, "\(text) of \(object["isa"] ?? "")")
                used.insert(text)
            }
        }
        let unused = objects.filter { !used.contains($0.key) }.compactMap { $0.value["isa"] as? String }
        #expect(unused.isEmpty, "\(unused)")
    }

    @Test func whatItNamesIsThere() throws {
        let objects = try Self.objects()
        func named(_ kind: String) -> [[String: Any]] { objects.values.filter { $0["isa"] as? String == kind } }
        func exists(_ path: String) -> Bool {
            FileManager.default.fileExists(atPath: Self.folder.appending(path: path).path)
        }
        #expect(named("PBXFileSystemSynchronizedRootGroup").compactMap { $0["path"] as? String }.sorted()
            == ["App", "UITests", "ViewModels"])
        for group in named("PBXFileSystemSynchronizedRootGroup") {
            let path = try #require(group["path"] as? String)
            #expect(exists(path))
        }
        for package in named("XCLocalSwiftPackageReference") {
            let path = try #require(package["relativePath"] as? String)
            #expect(exists("\(path)/Package.swift"), "\(path)")
        }
        let pages = named("PBXFileReference").filter { $0["lastKnownFileType"] as? String == "net.daringfireball.markdown" }
        #expect(!pages.isEmpty)
        for page in pages {
            let name = try #require(page["path"] as? String)
            #expect(exists("../docs/\(name)"))
        }
        for settings in named("XCBuildConfiguration").compactMap({ $0["buildSettings"] as? [String: Any] }) {
            if let file = settings["CODE_SIGN_ENTITLEMENTS"] as? String { #expect(exists(file)) }
        }
    }

    /// The scheme runs the app, and the UI tests with it.
    @Test func theSchemeNamesTheTargets() throws {
        let objects = try Self.objects()
        let file = Self.folder.appending(path: "MobileMoEDemo.xcodeproj/xcshareddata/xcschemes/MobileMoEDemo.xcscheme")
        let text = try String(contentsOf: file, encoding: .utf8)
        let reference = /BlueprintIdentifier = "([^"]*)"\s+BuildableName = "([^"]*)"\s+BlueprintName = "([^"]*)"/
        var names = Set<String>()
        for match in text.matches(of: reference) {
            let target = try #require(objects[String(match.1)])
            #expect(target["isa"] as? String == "PBXNativeTarget")
            #expect(target["name"] as? String == String(match.3))
            let product = try #require(target["productReference"] as? String)
            #expect(objects[product]?["path"] as? String == String(match.2))
            names.insert(String(match.3))
        }
        #expect(names == ["MobileMoEDemo", "MobileMoEDemoUITests"])
    }

    @Test func packagesHaveTheProducts() throws {
        let objects = try Self.objects()
        for dependency in objects.values where dependency["isa"] as? String == "XCSwiftPackageProductDependency" {
            let id = try #require(dependency["package"] as? String)
            let path = try #require(objects[id]?["relativePath"] as? String)
            let manifest = Self.folder.appending(path: path).appending(path: "Package.swift")
            let text = try String(contentsOf: manifest, encoding: .utf8)
            let product = try #require(dependency["productName"] as? String)
            #expect(text.contains(".library(name: \"\(product)\""), "\(product) in \(path)")
        }
    }
}
