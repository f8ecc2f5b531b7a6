package io.edgemoe;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;

/**
 * The JNI layer on a desktop JVM: {@code JniTest MODEL CACHE OUT} checks what has one right answer, and writes a
 * conversation to OUT for tests/apps/test_android.py, which knows what Python says.
 */
public final class JniTest {
    private static final long MIB = 1 << 20;
    private static final byte[][] NO_STOP = {};

    private static void check(boolean good, String what) {
        if (!good) throw new AssertionError(what);
    }

    private static byte[] bytes(String text) {
        return text.getBytes(UTF_8);
    }

    private static List<String> rest(long session) throws EdgeMoeException {
        List<String> pieces = new ArrayList<>();
        for (byte[] piece; (piece = Native.next(session)) != null; ) pieces.add(new String(piece, UTF_8));
        return pieces;
    }

    private static List<String> chat(long session, int maxTokens, float temp, int seed, byte[][] stop)
            throws EdgeMoeException {
        byte[][] roles = {bytes("system"), bytes("user")};
        byte[][] contents = {bytes("you are the other thing"), bytes("what is in the interior? \u20ac \ud83d\ude00")};
        Native.chat(session, roles, contents, null, maxTokens, temp, 40, 0.95f, 0.05f, seed, stop);
        return rest(session);
    }

    private static EdgeMoeException refused(ThrowingRunnable call) {
        try {
            call.run();
        } catch (EdgeMoeException error) {
            return error;
        }
        throw new AssertionError("was not refused");
    }

    interface ThrowingRunnable {
        void run() throws EdgeMoeException;
    }

    public static void main(String[] arguments) throws Exception {
        byte[] model = bytes(arguments[0]), cache = bytes(arguments[1]);
        EdgeMoeException small = refused(() -> Native.open(model, cache, 20 * MIB, 0, 512, 1));
        check(small.status == Native.STATUS_MEMORY && small.smallestBytes > 20 * MIB, "the smallest budget is named");
        check(small.getMessage().contains("(" + small.smallestBytes + " bytes)"), small.getMessage());
        EdgeMoeException absent = refused(() -> Native.open(bytes("/nowhere/\ud83d\ude00.gguf"), cache, MIB, 0, 0, 0));
        check(absent.status == Native.STATUS_IO && absent.getMessage().contains("\ud83d\ude00"), absent.getMessage());

        long session = Native.open(model, cache, 2048 * MIB, 0, 512, 1);
        List<String> first = chat(session, 50, 0.8f, 7, NO_STOP);
        check(Native.finish(session) == Native.FINISH_LENGTH, "it ended at max_tokens");
        Files.write(Path.of(arguments[2]), bytes(String.join("", first)));
        // From here on the prompt is known and only its last token computed: rounded alike each time.
        List<String> whole = chat(session, 50, 0.8f, 7, NO_STOP);

        // A stop text.
        String stop = whole.get(10) + whole.get(11);
        String cut = String.join("", chat(session, 50, 0.8f, 7, new byte[][] {bytes(stop)}));
        check(String.join("", whole).startsWith(cut + stop), "it stopped before the stop text");
        check(Native.finish(session) == Native.FINISH_STOP, "it ended at the stop text");

        // Cancelled from another thread in the middle; the next answer is whole.
        AtomicReference<EdgeMoeException> ended = new AtomicReference<>();
        Thread answering = new Thread(() -> ended.set(refused(() -> chat(session, 0, 1.0f, 1, NO_STOP))));
        long before = Native.stats(session)[Native.STAT_ANSWER_TOKENS];
        answering.start();
        while (answering.isAlive() && Native.stats(session)[Native.STAT_ANSWER_TOKENS] < before + 5) Thread.onSpinWait();
        Native.cancel(session);
        answering.join();
        check(ended.get() != null && ended.get().isCancelled(), "it was cancelled");
        check(whole.equals(chat(session, 50, 0.8f, 7, NO_STOP)), "the answer after a cancel is the same");

        // Memory warnings: the cache shrinks and grows back, the answer stays.
        long roomy = Native.stats(session)[Native.STAT_CACHE_BYTES];
        Native.memoryWarning(session, Native.MEMORY_CRITICAL);
        check(Native.stats(session)[Native.STAT_CACHE_BYTES] < roomy, "the cache shrank");
        check(whole.equals(chat(session, 50, 0.8f, 7, NO_STOP)), "the answer with the smallest cache is the same");
        Native.memoryWarning(session, Native.MEMORY_NORMAL);
        check(Native.stats(session)[Native.STAT_CACHE_BYTES] == roomy, "the cache grew back");
        check(refused(() -> Native.memoryWarning(session, 9)).status == Native.STATUS_ARGUMENT, "level 9");
        check(refused(() -> Native.setBudget(session, MIB)).status == Native.STATUS_MEMORY, "a budget of 1 MiB");
        Native.setBudget(session, 1024 * MIB);
        check(Native.stats(session)[Native.STAT_BUDGET_BYTES] == 1024 * MIB, "the budget changed");

        // Java nulls are refused like C's.
        byte[][] holes = {null};
        check(refused(() -> Native.chat(session, holes, holes, null, 1, 0, 0, 1, 0, 0, NO_STOP)).status
                == Native.STATUS_ARGUMENT, "null messages");
        check(refused(() -> Native.open(null, cache, MIB, 0, 0, 0)).status == Native.STATUS_ARGUMENT, "null path");
        Native.prompt(session, bytes("the theme"), 3, 0, 0, 1, 0, 0, NO_STOP);
        check(!rest(session).isEmpty(), "plain text goes on");
        Native.close(session);
        System.out.println("JniTest: all good");
    }
}
