// `edgemoe-smoke MODEL CACHE`: checks what has one right answer, and prints a conversation for tests/apps/test_ios.py,
// which knows what Python says.
import EdgeMoE

let mib: UInt64 = 1 << 20
let model = CommandLine.arguments[1]
let cache = CommandLine.arguments[2]

func text(_ stream: AsyncThrowingStream<String, Error>) async throws -> String {
    var all = ""
    for try await piece in stream { all += piece }
    return all
}

do {
    _ = try Session(path: model, cacheDir: cache, budgetBytes: 20 * mib)
    fatalError("20 MiB was not refused")
} catch let error as EdgeMoEError {
    precondition(error.smallestBytes > 20 * mib && error.message.contains("(\(error.smallestBytes) bytes)"))
}

let session = try Session(path: model, cacheDir: cache, budgetBytes: 2048 * mib, contextTokens: 512, threads: 1)
let talk = [
    Message(role: "system", content: "you are the other thing"),
    Message(role: "user", content: "what is in the interior? € 😀"),
]
var answer = Answer()
answer.maxTokens = 50
answer.temp = 0.8
answer.seed = 7
let first = try await text(session.chat(talk, answer))
precondition(session.finish == .length)
// From here on the prompt is known and only its last token computed: rounded alike each time.
let whole = try await text(session.chat(talk, answer))

// Who stops reading ends the answer; the session is free for the next.
var long = answer
long.maxTokens = 0
var pieces = 0
for try await _ in session.chat(talk, long) {
    pieces += 1
    if pieces == 3 { break }
}
let afterBreak = try await text(session.chat(talk, answer))
precondition(afterBreak == whole)

// Cancelled from elsewhere.
do {
    for try await _ in session.chat(talk, long) { session.cancel() }
    fatalError("it was not cancelled")
} catch let error as EdgeMoEError {
    precondition(error.isCancelled)
}

// A stop text, memory warnings, the budget.
var stopping = answer
stopping.stop = [String(whole.dropFirst(10).prefix(3))]
let cut = try await text(session.chat(talk, stopping))
precondition(whole.hasPrefix(cut + stopping.stop[0]) && session.finish == .stop)
let roomy = session.plan.cache_bytes
session.memoryWarning(.critical)
precondition(session.plan.cache_bytes < roomy)
let squeezed = try await text(session.chat(talk, answer))
precondition(squeezed == whole)
session.memoryWarning(.normal)
precondition(session.plan.cache_bytes == roomy)
do {
    try session.setBudget(mib)
    fatalError("1 MiB was not refused")
} catch is EdgeMoEError {}
precondition(session.stats.n_decode > 49)
print(first, terminator: "")
