import SwiftUI
import UniformTypeIdentifiers

struct ModelsView: View {
    @Environment(AppModel.self) private var model
    @State private var id = "facebook/MobileMoE-S-QAT"
    @State private var token = AccessToken.read() ?? ""
    @State private var isImporting = false

    var body: some View {
        @Bindable var library = model.library
        NavigationStack {
            List {
                Section("On this device") {
                    if library.entries.isEmpty {
                        Text("No model yet.").foregroundStyle(.secondary)
                    }
                    ForEach(library.entries) { entry in
                        Button {
                            model.select(entry)
                        } label: {
                            HStack {
                                VStack(alignment: .leading) {
                                    Text(entry.name)
                                    Text("\(entry.bytes.formattedBytes), \(entry.engines.map(\.title).joined(separator: " or "))")
                                        .font(.caption)
                                        .foregroundStyle(.secondary)
                                }
                                Spacer()
                                if model.selected == entry {
                                    Image(systemName: "checkmark").accessibilityLabel("In use")
                                }
                            }
                        }
                        .foregroundStyle(.primary)
                        .swipeActions {
                            Button("Remove", role: .destructive) { model.remove(entry) }
                        }
                    }
                    Button("Add from Files…", systemImage: "folder") { isImporting = true }
                }
                Section {
                    TextField("owner/name", text: $id)
                        .textInputAutocapitalization(.never)
                        .autocorrectionDisabled()
                        .accessibilityIdentifier("model id")
                    SecureField("Access token", text: $token)
                    Button("Download", systemImage: "arrow.down.circle") {
                        AccessToken.write(token)
                        library.download(id, token: token)
                    }
                    .disabled(id.isEmpty)
                } header: {
                    Text("From Hugging Face")
                } footer: {
                    Text("Meta's models ask for their licence to be accepted on huggingface.co first; the token is that of your account. It is kept in the keychain.")
                }
                if !library.downloads.isEmpty {
                    Section("Downloads") {
                        ForEach(library.downloads) { DownloadRow(download: $0, token: token) }
                    }
                }
            }
            .navigationTitle("Models")
            .refreshable { @MainActor in model.library.refresh() }
            .fileImporter(
                isPresented: $isImporting, allowedContentTypes: [.folder, .package], allowsMultipleSelection: true
            ) { result in
                switch result {
                case .success(let urls): Task { await library.add(urls) }
                case .failure(let error): library.problem = error.localizedDescription
                }
            }
            .showing(problem: $library.problem)
        }
    }
}

private struct DownloadRow: View {
    @Environment(AppModel.self) private var model
    let download: ModelDownload
    let token: String

    var body: some View {
        VStack(alignment: .leading, spacing: 6) {
            Text(download.id)
            ProgressView(value: download.fraction)
                .accessibilityLabel("Download of \(download.name)")
            HStack {
                Text(state).font(.caption).foregroundStyle(.secondary)
                Spacer()
                if download.isRunning {
                    Button("Stop") { download.stop() }
                } else {
                    Button("Go on") { model.library.download(download.id, token: token) }
                    Button("Discard", role: .destructive) { Task { await model.library.discard(download) } }
                }
            }
            .buttonStyle(.borderless)
        }
    }

    private var state: String {
        switch download.phase {
        case .asking: "Asking Hugging Face"
        case .downloading: "\(download.receivedBytes.formattedBytes) of \(download.totalBytes.formattedBytes)"
        case .checking: "Checking what arrived"
        case .done: "Done"
        case .stopped: "Stopped at \(download.receivedBytes.formattedBytes)"
        case .failed(let sentence): sentence
        }
    }
}
