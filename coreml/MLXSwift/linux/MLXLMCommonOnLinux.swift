// What mlx-swift-lm takes from Apple's frameworks without asking whether they are there: added to its
// sources where they are compiled for a comparison with Python on Linux.
import Foundation

enum GPU {
    static func maxRecommendedWorkingSetBytes() -> Int? { nil }
}

/// Whether an object is a boxed truth value is all that is asked of these.
func CFGetTypeID(_ number: NSNumber) -> Int { String(cString: number.objCType) == "c" ? 1 : 0 }

func CFBooleanGetTypeID() -> Int { 1 }
