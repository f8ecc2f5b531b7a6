package io.edgemoe

import java.util.concurrent.locks.ReentrantReadWriteLock
import kotlin.concurrent.read
import kotlin.concurrent.write
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.launch

/** One turn of a conversation. [role]: "system", "user" or "assistant". */
data class Message(val role: String, val content: String)

/**
 * How an answer is made. [maxTokens]: 0 until the model ends or the context is full. [temp]: 0 always takes the likeliest
 * token. [stop]: texts that end the answer and are not part of it. [chatTemplate]: null for the model's own; a name
 * ("chatml") for a model whose own is not recognised.
 */
data class Answer(
    val maxTokens: Int = 0,
    val temp: Float = 0f,
    val topK: Int = 40,
    val topP: Float = 0.95f,
    val minP: Float = 0.05f,
    val seed: Int = 0,
    val stop: List<String> = emptyList(),
    val chatTemplate: String? = null,
)

/** How much memory the system has for us; see `emoe_session_memory_warning`. */
enum class MemoryLevel { NORMAL, LOW, CRITICAL }

/** Why an answer ended. NONE: it did not. STOP: the model or a stop text. LENGTH: maxTokens, or the context is full. */
enum class Finish { NONE, STOP, LENGTH }

/** Counters since the session was opened, and the state of now; times in ns, sizes in bytes. */
class Stats internal constructor(private val values: LongArray) {
    val promptTokens get() = values[Native.STAT_PROMPT_TOKENS]
    val answerTokens get() = values[Native.STAT_ANSWER_TOKENS]
    val readBytes get() = values[Native.STAT_READ_BYTES]
    val cacheBytes get() = values[Native.STAT_CACHE_BYTES]
    val budgetBytes get() = values[Native.STAT_BUDGET_BYTES]
    val smallestBytes get() = values[Native.STAT_SMALLEST_BYTES]
    val expertsThatFit get() = values[Native.STAT_SLOTS]
    val experts get() = values[Native.STAT_EXPERTS]
    val contextTokens get() = values[Native.STAT_CONTEXT_TOKENS]
    val answerTokensPerSecond get() = rate(Native.STAT_ANSWER_TOKENS, Native.STAT_ANSWER_NS)
    val promptTokensPerSecond get() = rate(Native.STAT_PROMPT_TOKENS, Native.STAT_PROMPT_NS)
    val hitRate: Double get() {
        val uses = values[Native.STAT_HITS] + values[Native.STAT_MISSES]
        return if (uses > 0) values[Native.STAT_HITS].toDouble() / uses else 0.0
    }

    private fun rate(count: Int, ns: Int) = if (values[ns] > 0) values[count] * 1e9 / values[ns] else 0.0
}

/**
 * A model opened inside a memory budget: messages in, a flow of text out. One answer at a time; [cancel], [setBudget],
 * [memoryWarning], [stats] and [close] may be called from any thread.
 */
class Session private constructor(private var handle: Long) : AutoCloseable {
    // Calls hold it for reading, close for writing: no call reaches a session that is gone.
    private val life = ReentrantReadWriteLock()

    /**
     * The answer to messages, whole characters as they come. Computed on a thread of [Dispatchers.IO] while it is
     * collected; to stop collecting ends it. Throws [EdgeMoeException].
     */
    fun chat(messages: List<Message>, answer: Answer = Answer()): Flow<String> = answerFlow { session ->
        Native.chat(
            session, bytes(messages.map { it.role }), bytes(messages.map { it.content }),
            answer.chatTemplate?.toByteArray(), answer.maxTokens, answer.temp, answer.topK, answer.topP, answer.minP,
            answer.seed, bytes(answer.stop),
        )
    }

    /** The same for plain text, which is continued. */
    fun prompt(text: String, answer: Answer = Answer()): Flow<String> = answerFlow { session ->
        Native.prompt(
            session, text.toByteArray(), answer.maxTokens, answer.temp, answer.topK, answer.topP, answer.minP,
            answer.seed, bytes(answer.stop),
        )
    }

    /** Ends the answer under way: its flow throws an [EdgeMoeException] that `isCancelled`. */
    fun cancel() = life.read { if (handle != 0L) Native.cancel(handle) }

    /** Changes the budget, also while an answer is computed, which stays the same. */
    fun setBudget(bytes: Long) = onSession { Native.setBudget(it, bytes) }

    /** What the system says about its memory; the cache shrinks, and grows back with [MemoryLevel.NORMAL]. */
    fun memoryWarning(level: MemoryLevel) = life.read { if (handle != 0L) Native.memoryWarning(handle, level.ordinal) }

    val stats: Stats get() = onSession { Stats(Native.stats(it)) }

    /** Why the last answer ended. */
    val finish: Finish get() = onSession { Finish.entries[Native.finish(it)] }

    /** Ends what is computed and gives everything back. May be called again. */
    override fun close() {
        cancel()
        life.write {
            if (handle != 0L) Native.close(handle)
            handle = 0
        }
    }

    private fun <T> onSession(call: (Long) -> T): T = life.read {
        check(handle != 0L) { "the session is closed" }
        call(handle)
    }

    private fun answerFlow(begin: (Long) -> Unit): Flow<String> = callbackFlow {
        val worker = launch(Dispatchers.IO) {
            try {
                onSession(begin)
                while (true) send((onSession { Native.next(it) } ?: break).decodeToString())
                close()
            } catch (error: EdgeMoeException) {
                close(error)
            } catch (error: IllegalStateException) {
                close(error)
            }
        }
        // Also when the collector goes away in the middle of a token, or of a long prompt.
        awaitClose { if (worker.isActive) this@Session.cancel() }
    }

    companion object {
        /**
         * Opens a model. [cacheDir]: a folder of the app's, where a copy of the dense weights is kept. [budgetBytes]: of
         * the whole process, the app included. [processBytes]: what the app will take without the model, if that is
         * more than it takes now. [contextTokens], [threads]: 0 for the defaults.
         * Blocks for some seconds; throws [EdgeMoeException], with the smallest budget that works if this one is too
         * small.
         */
        @JvmStatic
        fun open(
            path: String, cacheDir: String, budgetBytes: Long, contextTokens: Int = 0, threads: Int = 0,
            processBytes: Long = 0,
        ) = Session(
            Native.open(path.toByteArray(), cacheDir.toByteArray(), budgetBytes, processBytes, contextTokens, threads),
        )

        private fun bytes(texts: List<String>) = Array(texts.size) { texts[it].toByteArray() }
    }
}
