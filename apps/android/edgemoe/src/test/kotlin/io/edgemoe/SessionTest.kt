package io.edgemoe

import android.content.ComponentCallbacks2
import android.content.Context
import java.io.File
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking

/**
 * The Kotlin wrapper on a desktop JVM: SessionTestKt MODEL CACHE OUT, as JniTest. `android.*` are the stubs beside this
 * file: what is checked of MemoryWatch is that it compiles against those signatures and what it tells the session.
 */
private const val MIB = 1L shl 20

private val talk = listOf(
    Message("system", "you are the other thing"),
    Message("user", "what is in the interior? \u20ac \ud83d\ude00"),
)
private val answer = Answer(maxTokens = 50, temp = 0.8f, seed = 7)

private inline fun <reified E : Throwable> refused(call: () -> Unit): E {
    try {
        call()
    } catch (error: Throwable) {
        if (error is E) return error
        throw error
    }
    throw AssertionError("was not refused")
}

fun main(arguments: Array<String>) = runBlocking {
    val (model, cache, out) = arguments
    val small = refused<EdgeMoeException> { Session.open(model, cache, 20 * MIB) }
    check(small.smallestBytes > 20 * MIB)

    val session = Session.open(model, cache, 2048 * MIB, contextTokens = 512, threads = 1)
    File(out).writeText(session.chat(talk, answer).toList().joinToString(""))
    // From here on the prompt is known and only its last token computed: rounded alike each time.
    val whole = session.chat(talk, answer).toList()
    check(session.finish == Finish.LENGTH)
    check(session.stats.answerTokens >= 49 && session.stats.hitRate > 0 && session.stats.contextTokens == 512L)

    // Who stops collecting ends the answer; the session is free for the next.
    check(session.chat(talk, answer.copy(maxTokens = 0)).take(3).toList().size == 3)
    check(session.chat(talk, answer).toList() == whole)

    // So does a cancelled coroutine.
    val job = launch { session.chat(talk, answer.copy(maxTokens = 0)).collect() }
    while (session.stats.answerTokens < 200) delay(1)
    job.cancel()
    job.join()
    check(session.chat(talk, answer).toList() == whole)

    // Android's warnings.
    val context = Context()
    val watch = MemoryWatch(context, session)
    watch.start()
    val roomy = session.stats.cacheBytes
    context.trim(ComponentCallbacks2.TRIM_MEMORY_RUNNING_MODERATE)
    check(session.stats.cacheBytes == roomy)
    context.trim(ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW)
    val low = session.stats.cacheBytes
    check(low < roomy)
    context.trim(ComponentCallbacks2.TRIM_MEMORY_BACKGROUND)
    check(session.stats.cacheBytes < low)
    check(session.chat(talk, answer).toList() == whole)
    context.lowMemory = true
    watch.recover()
    check(session.stats.cacheBytes < low)
    context.lowMemory = false
    watch.recover()
    check(session.stats.cacheBytes == roomy)
    watch.stop()

    check(refused<EdgeMoeException> { session.setBudget(MIB) }.status == 5)
    session.close()
    session.close()
    session.memoryWarning(MemoryLevel.LOW) // a late callback finds nobody
    refused<IllegalStateException> { session.stats }
    refused<IllegalStateException> { session.chat(talk, answer).toList() }
    println("SessionTest: all good")
}
