// swift-tools-version:5.9
// EdgeMoE for Swift: a wrapper over edgemoe.h, which Sources/CEdgeMoE makes a module. The program that uses it links
// libedgemoe and llama.cpp's libraries: docs/embedding.md.
import PackageDescription

let package = Package(
    name: "EdgeMoE",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "EdgeMoE", targets: ["EdgeMoE"])],
    targets: [
        .systemLibrary(name: "CEdgeMoE"),
        .target(name: "EdgeMoE", dependencies: ["CEdgeMoE"]),
        .executableTarget(name: "edgemoe-smoke", dependencies: ["EdgeMoE"]),
    ]
)
