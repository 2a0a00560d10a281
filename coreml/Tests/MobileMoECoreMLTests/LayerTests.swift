import Foundation
import Testing

/// Tests that share `LayerOptions` and the stand-ins' settings, one after the other.
@Suite(.serialized) struct LayerTests {}
