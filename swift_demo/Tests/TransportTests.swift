#if canImport(Glibc)
    import Foundation
    import Glibc
    import Testing

    @testable import DemoViewModels

    /// The real transport against a server on this machine. On a Mac the simulator's test does it.
    struct TransportTests {
        @Test func aBodyComesInPiecesWithItsStatus() async throws {
            let body = String(repeating: "0123456789", count: 100_000)
            let server = try LocalServer { request in
                #expect(request.contains("Range: bytes=7-"))
                return "HTTP/1.1 206 Partial Content\r\nContent-Length: \(body.utf8.count)\r\n\r\n\(body)"
            }
            let response = try await URLSessionTransport().get(server.url, headers: ["Range": "bytes=7-"])
            #expect(response.status == 206)
            let arrived = try await response.wholeBody(atMost: body.utf8.count)
            #expect(arrived == Data(body.utf8))
        }

        @Test func aConnectionThatBreaksIsAnError() async throws {
            let server = try LocalServer { _ in "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf" }
            let response = try await URLSessionTransport().get(server.url, headers: [:])
            await #expect(throws: (any Error).self) { try await response.wholeBody(atMost: 1000) }
        }

        @Test func nobodyThereIsAnError() async throws {
            let url = try LocalServer { _ in "" }.url  // the server is gone
            await #expect(throws: (any Error).self) { try await URLSessionTransport().get(url, headers: [:]) }
        }

        @Test func aBodyWithoutEndIsCutOff() async throws {
            let server = try LocalServer { _ in
                "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + String(repeating: "x", count: 100_000)
            }
            let response = try await URLSessionTransport().get(server.url, headers: [:])
            await #expect(throws: DownloadError.unexpectedAnswer) { try await response.wholeBody(atMost: 5000) }
        }
    }

    /// Answers each connection once.
    private final class LocalServer: Sendable {
        let url: URL
        private let socket: Int32

        init(answer: @escaping @Sendable (String) -> String) throws {
            let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            self.socket = socket
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_addr.s_addr = UInt32(INADDR_LOOPBACK).bigEndian
            var length = socklen_t(MemoryLayout<sockaddr_in>.size)
            let bound = withUnsafeMutableBytes(of: &address) { bytes in
                let pointer = bytes.baseAddress!.assumingMemoryBound(to: sockaddr.self)
                return bind(socket, pointer, length) == 0 && listen(socket, 4) == 0
                    && getsockname(socket, pointer, &length) == 0
            }
            try #require(bound)
            url = try #require(URL(string: "http://127.0.0.1:\(UInt16(bigEndian: address.sin_port))/file"))
            Thread.detachNewThread {
                while true {
                    let connection = accept(socket, nil, nil)
                    guard connection >= 0 else { return }
                    var request = [UInt8](repeating: 0, count: 4096)
                    let count = recv(connection, &request, request.count, 0)
                    let bytes = Array(answer(String(decoding: request.prefix(max(0, count)), as: UTF8.self)).utf8)
                    var sent = 0
                    while sent < bytes.count {
                        let more = bytes[sent...].withUnsafeBytes {
                            send(connection, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
                        }
                        guard more > 0 else { break }
                        sent += more
                    }
                    close(connection)
                }
            }
        }

        deinit {
            shutdown(socket, Int32(SHUT_RDWR))
            close(socket)
        }
    }
#endif
