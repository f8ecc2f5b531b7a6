// A model opened inside a memory budget: messages in, an asynchronous stream of text out.
import CEdgeMoE
import Dispatch

/// What edgemoe.h refused. `smallestBytes`: with `.memory`, the smallest budget that works; else 0.
public struct EdgeMoEError: Error, CustomStringConvertible, Sendable {
    public let status: Int32
    public let message: String
    public let smallestBytes: UInt64

    public var isCancelled: Bool { status == EMOE_ERR_CANCELLED }
    public var description: String { message }

    init(_ status: emoe_status, _ error: emoe_error, smallestBytes: UInt64 = 0) {
        var error = error
        self.status = status
        self.message = withUnsafeBytes(of: &error.message) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        self.smallestBytes = smallestBytes
    }
}

/// One turn of a conversation. `role`: "system", "user" or "assistant".
public struct Message: Sendable {
    public var role: String
    public var content: String

    public init(role: String, content: String) {
        self.role = role
        self.content = content
    }
}

/// How an answer is made. `maxTokens`: 0 until the model ends or the context is full. `temp`: 0 always takes the
/// likeliest token. `stop`: texts that end the answer and are not part of it. `chatTemplate`: nil for the model's own;
/// a name ("chatml") for a model whose own is not recognised.
public struct Answer: Sendable {
    public var maxTokens: UInt32 = 0
    public var temp: Float = 0
    public var topK: Int32 = 40
    public var topP: Float = 0.95
    public var minP: Float = 0.05
    public var seed: UInt32 = 0
    public var stop: [String] = []
    public var chatTemplate: String?

    public init() {}
}

/// How much memory the system has for us; see `emoe_session_memory_warning`.
public enum MemoryLevel: UInt32, Sendable {
    case normal, low, critical
}

/// Why an answer ended. `none`: it did not. `stop`: the model or a stop text. `length`: `maxTokens`, or the context is
/// full.
public enum Finish: UInt32, Sendable {
    case none, stop, length
}

/// Used from any thread; it computes one answer at a time. It is closed when nothing refers to it any more, and what it
/// computes refers to it.
public final class Session: @unchecked Sendable {
    private let handle: OpaquePointer
    // Answers are computed here, one after another: never on the threads of Swift's own pool, which must not block.
    private let queue = DispatchQueue(label: "edgemoe.session")

    /// Opens a model; takes some seconds. `cacheDir`: a folder of the app's (Caches will do), where a copy of the dense
    /// weights is kept. `budgetBytes`: of the whole process, the app included. `processBytes`: what the app will take
    /// without the model, if that is more than it takes now. `contextTokens`, `threads`: 0 for the defaults.
    public init(
        path: String, cacheDir: String, budgetBytes: UInt64, processBytes: UInt64 = 0, contextTokens: UInt32 = 0,
        threads: UInt32 = 0
    ) throws {
        var setup = emoe_setup()
        setup.struct_size = UInt32(MemoryLayout<emoe_setup>.size)
        setup.memory = budgetBytes
        setup.process_bytes = processBytes
        setup.n_ctx = contextTokens
        setup.n_threads = threads
        var plan = emoe_plan()
        plan.struct_size = UInt32(MemoryLayout<emoe_plan>.size)
        var session: OpaquePointer?
        var error = emoe_error()
        let status = emoe_session_open(path, cacheDir, &setup, &session, &plan, &error)
        guard status == EMOE_OK, let session else {
            throw EdgeMoEError(
                status, error, smallestBytes: status == EMOE_ERR_MEMORY ? plan.smallest_bytes : 0)
        }
        handle = session
    }

    deinit { emoe_session_close(handle) }

    /// The answer to messages, whole characters as they come. Who stops reading the stream ends the answer.
    public func chat(_ messages: [Message], _ answer: Answer = Answer()) -> AsyncThrowingStream<String, Error> {
        stream { [self] error in
            withCStrings(messages.flatMap { [$0.role, $0.content] }) { texts in
                let list = (0..<messages.count).map { emoe_message(role: texts[2 * $0], content: texts[2 * $0 + 1]) }
                return answer.withParams { params in
                    if let name = answer.chatTemplate {
                        return emoe_session_chat(handle, list, UInt32(list.count), name, params, error)
                    }
                    return emoe_session_chat(handle, list, UInt32(list.count), nil, params, error)
                }
            }
        }
    }

    /// The same for plain text, which is continued.
    public func prompt(_ text: String, _ answer: Answer = Answer()) -> AsyncThrowingStream<String, Error> {
        stream { [self] error in
            answer.withParams { emoe_session_prompt(handle, text, UInt64(text.utf8.count), $0, error) }
        }
    }

    /// Ends the answer under way: its stream throws an `EdgeMoEError` that `isCancelled`.
    public func cancel() { emoe_session_cancel(handle) }

    /// Changes the budget, also while an answer is computed, which stays the same.
    public func setBudget(_ bytes: UInt64) throws {
        var error = emoe_error()
        let status = emoe_session_set_budget(handle, bytes, &error)
        guard status == EMOE_OK else { throw EdgeMoEError(status, error) }
    }

    /// What the system says about its memory; the cache shrinks, and grows back with `.normal`.
    public func memoryWarning(_ level: MemoryLevel) {
        _ = emoe_session_memory_warning(handle, level.rawValue, nil)  // refuses only levels that are none
    }

    /// Why the last answer ended.
    public var finish: Finish { Finish(rawValue: emoe_session_finish(handle)) ?? .none }

    /// How the budget is spent now; fields as in edgemoe.h.
    public var plan: emoe_plan {
        var plan = emoe_plan()
        plan.struct_size = UInt32(MemoryLayout<emoe_plan>.size)
        _ = emoe_session_get_plan(handle, &plan, nil)
        return plan
    }

    /// Counters since the session was opened; fields as in edgemoe.h.
    public var stats: emoe_stats {
        var stats = emoe_stats()
        stats.struct_size = UInt32(MemoryLayout<emoe_stats>.size)
        _ = emoe_engine_get_stats(emoe_session_engine(handle), &stats, nil)
        return stats
    }

    private func stream(
        _ begin: @escaping @Sendable (UnsafeMutablePointer<emoe_error>) -> emoe_status
    ) -> AsyncThrowingStream<String, Error> {
        AsyncThrowingStream { continuation in
            let life = Life()
            continuation.onTermination = { reason in
                // Only what this stream computes: by now the next answer may be under way.
                if case .cancelled = reason, life.end() { self.cancel() }
            }
            queue.async {
                guard life.begin() else { return }
                var error = emoe_error()
                var status = begin(&error)
                while status == EMOE_OK {
                    var text: UnsafePointer<CChar>?
                    var count: UInt64 = 0
                    status = emoe_session_next(self.handle, &text, &count, &error)
                    guard status == EMOE_OK, let text else { break }
                    let bytes = UnsafeRawBufferPointer(start: text, count: Int(count))
                    continuation.yield(String(decoding: bytes, as: UTF8.self))
                }
                _ = life.end()
                continuation.finish(throwing: status == EMOE_OK ? nil : EdgeMoEError(status, error))
            }
        }
    }
}

/// Where an answer is in its life, for the thread that computes it and for who gives it up.
private final class Life: @unchecked Sendable {
    private enum State { case waiting, computing, ended }
    private var state = State.waiting
    private let lock = DispatchSemaphore(value: 1)

    /// Whether it may begin: not when it was given up before its turn.
    func begin() -> Bool {
        lock.wait()
        defer { lock.signal() }
        guard case .waiting = state else { return false }
        state = .computing
        return true
    }

    /// Whether it was being computed.
    func end() -> Bool {
        lock.wait()
        defer { lock.signal() }
        let computing = if case .computing = state { true } else { false }
        state = .ended
        return computing
    }
}

extension Answer {
    /// The C struct, valid during `body`.
    fileprivate func withParams(_ body: (UnsafePointer<emoe_answer_params>) -> emoe_status) -> emoe_status {
        withCStrings(stop) { texts in
            var params = emoe_answer_params()
            params.struct_size = UInt32(MemoryLayout<emoe_answer_params>.size)
            params.max_tokens = maxTokens
            params.n_stop = UInt32(texts.count)
            var sampler = emoe_sampler_params()
            sampler.struct_size = UInt32(MemoryLayout<emoe_sampler_params>.size)
            sampler.seed = seed
            sampler.temp = temp
            sampler.top_k = topK
            sampler.top_p = topP
            sampler.min_p = minP
            sampler.repeat_penalty = 1
            return withUnsafePointer(to: sampler) { sampler in
                texts.withUnsafeBufferPointer { stops in
                    params.sampler = sampler
                    params.stop = stops.baseAddress
                    return body(&params)
                }
            }
        }
    }
}

/// C strings of `texts`, valid during `body`.
private func withCStrings<Result>(_ texts: [String], _ body: ([UnsafePointer<CChar>?]) -> Result) -> Result {
    let buffers = texts.map { text -> UnsafeMutablePointer<CChar> in
        let bytes = text.utf8CString
        let buffer = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count)
        bytes.withUnsafeBufferPointer { buffer.initialize(from: $0.baseAddress!, count: $0.count) }
        return buffer
    }
    defer { buffers.forEach { $0.deallocate() } }
    return body(buffers.map { UnsafePointer($0) })
}
