package io.edgemoe;

import java.nio.charset.StandardCharsets;

/** What edgemoe.h refused: its status, its sentence, and with STATUS_MEMORY the smallest budget that works. */
public final class EdgeMoeException extends Exception {
    private static final long serialVersionUID = 1L;

    /** EMOE_ERR_*. */
    public final int status;
    /** The smallest budget that works, bytes; 0 when that is not the matter. */
    public final long smallestBytes;

    EdgeMoeException(int status, byte[] message, long smallestBytes) {
        super(new String(message, StandardCharsets.UTF_8));
        this.status = status;
        this.smallestBytes = smallestBytes;
    }

    /** Whether {@code Session.cancel} was called. */
    public boolean isCancelled() {
        return status == Native.STATUS_CANCELLED;
    }
}
