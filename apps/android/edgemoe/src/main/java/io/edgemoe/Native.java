package io.edgemoe;

/**
 * edgemoe.h through JNI, a method a function; implemented by src/main/cpp/edgemoe_jni.c. Text is UTF-8 bytes, since JNI's
 * own strings are not. A session is the pointer of an emoe_session: who holds it sees to it that no call comes after
 * {@link #close}. Apps use {@code Session} in Kotlin instead.
 */
final class Native {
    static {
        System.loadLibrary("edgemoe_jni");
    }

    private Native() {}

    static final int STATUS_ARGUMENT = 1;
    static final int STATUS_IO = 2;
    static final int STATUS_FORMAT = 3;
    static final int STATUS_UNSUPPORTED = 4;
    static final int STATUS_MEMORY = 5;
    static final int STATUS_CANCELLED = 6;
    static final int STATUS_CONTEXT = 7;
    static final int STATUS_INTERNAL = 8;

    static final int MEMORY_NORMAL = 0;
    static final int MEMORY_LOW = 1;
    static final int MEMORY_CRITICAL = 2;

    static final int FINISH_NONE = 0;
    static final int FINISH_STOP = 1;
    static final int FINISH_LENGTH = 2;

    /** Indices of {@link #stats}. */
    static final int STAT_PROMPT_TOKENS = 0, STAT_PROMPT_NS = 1, STAT_ANSWER_TOKENS = 2, STAT_ANSWER_NS = 3,
            STAT_HITS = 4, STAT_MISSES = 5, STAT_READ_BYTES = 6, STAT_CACHE_BYTES = 7, STAT_BUDGET_BYTES = 8,
            STAT_SMALLEST_BYTES = 9, STAT_SLOTS = 10, STAT_EXPERTS = 11, STAT_CONTEXT_TOKENS = 12, N_STAT = 13;

    /** emoe_session_open. nCtx, nThreads, processBytes: 0 for the defaults. */
    static native long open(byte[] path, byte[] cacheDir, long budgetBytes, long processBytes, int nCtx, int nThreads)
            throws EdgeMoeException;

    /** emoe_session_close. */
    static native void close(long session);

    /** emoe_session_chat. chatTemplate: null for the model's own. seed: 32 bits. */
    static native void chat(long session, byte[][] roles, byte[][] contents, byte[] chatTemplate, int maxTokens,
            float temp, int topK, float topP, float minP, int seed, byte[][] stop) throws EdgeMoeException;

    /** emoe_session_prompt. */
    static native void prompt(long session, byte[] text, int maxTokens, float temp, int topK, float topP, float minP,
            int seed, byte[][] stop) throws EdgeMoeException;

    /** emoe_session_next; null when the answer has ended. */
    static native byte[] next(long session) throws EdgeMoeException;

    /** emoe_session_finish: FINISH_*. */
    static native int finish(long session);

    /** emoe_session_cancel. Any thread. */
    static native void cancel(long session);

    /** emoe_session_set_budget. Any thread. */
    static native void setBudget(long session, long budgetBytes) throws EdgeMoeException;

    /** emoe_session_memory_warning: MEMORY_*. Any thread. */
    static native void memoryWarning(long session, int level) throws EdgeMoeException;

    /** emoe_engine_get_stats and emoe_session_get_plan: N_STAT numbers, by STAT_*. Any thread. */
    static native long[] stats(long session) throws EdgeMoeException;
}
