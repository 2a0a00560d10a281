import Foundation

/// Why a model could not be downloaded.
enum DownloadError: LocalizedError, Equatable {
    case notAnId(String)
    case notFound(String)
    case notAllowed(String)
    case tooManyRequests
    case unexpectedAnswer
    case status(Int)
    case noCheckpoint(String)
    case noSpace(needed: Int, free: Int)
    case damaged(file: String)
    case tooLong(file: String)
    case network(String)

    var errorDescription: String? {
        switch self {
        case .notAnId(let text):
            "“\(text)” is no model id: it has the form owner/name, such as facebook/MobileMoE-S-QAT."
        case .notFound(let id): "There is no model \(id) on Hugging Face."
        case .notAllowed(let id):
            "\(id) asks for a licence to be accepted: accept it on huggingface.co/\(id), then enter an access token of your account."
        case .tooManyRequests: "Hugging Face asks to wait: try again in some minutes."
        case .unexpectedAnswer: "Hugging Face gave an answer that this app does not understand."
        case .status(let status): "Hugging Face answered with status \(status): try again later."
        case .noCheckpoint(let id): "\(id) holds no checkpoint: it needs config.json and .safetensors files."
        case .noSpace(let needed, let free):
            "The download needs \(needed.formattedBytes), and \(free.formattedBytes) are free on this device."
        case .damaged(let file): "\(file) arrived damaged and was removed: start the download again."
        case .tooLong(let file): "\(file) is longer than Hugging Face said and was removed: start the download again."
        case .network(let reason): "The connection broke off (\(reason)). Start again to go on where it stopped."
        }
    }
}

extension Int {
    /// A number of bytes for a person.
    var formattedBytes: String {
        let units = ["bytes", "kB", "MB", "GB", "TB"]
        var (value, unit) = (Double(self), 0)
        while value >= 999.5, unit + 1 < units.count { (value, unit) = (value / 1000, unit + 1) }
        return unit == 0 ? "\(self) bytes" : String(format: value < 9.95 ? "%.1f %@" : "%.0f %@", value, units[unit])
    }
}
