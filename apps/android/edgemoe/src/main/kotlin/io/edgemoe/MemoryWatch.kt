package io.edgemoe

import android.app.ActivityManager
import android.content.ComponentCallbacks2
import android.content.Context
import android.content.res.Configuration

/**
 * Tells a session what Android says about memory, from [start] to [stop]. Android warns, but never says that memory is
 * back: [recover] asks for it. Call that before an answer, and when the app comes to the front.
 */
class MemoryWatch(private val context: Context, private val session: Session) : ComponentCallbacks2 {
    fun start() = context.registerComponentCallbacks(this)

    fun stop() = context.unregisterComponentCallbacks(this)

    override fun onTrimMemory(level: Int) {
        memoryLevel(level)?.let(session::memoryWarning)
    }

    @Deprecated("Android calls it on old versions only")
    override fun onLowMemory() = session.memoryWarning(MemoryLevel.CRITICAL)

    override fun onConfigurationChanged(newConfig: Configuration) = Unit

    /** Gives the cache back what the budget allows, unless the system is still short of memory. */
    fun recover() {
        val now = ActivityManager.MemoryInfo()
        (context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager).getMemoryInfo(now)
        if (!now.lowMemory) session.memoryWarning(MemoryLevel.NORMAL)
    }

    companion object {
        /**
         * The level for one of onTrimMemory; null when it asks for nothing. In the background a process is killed for
         * its size, so it gives up all that it can.
         */
        @JvmStatic
        fun memoryLevel(trim: Int): MemoryLevel? = when {
            trim >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND -> MemoryLevel.CRITICAL
            trim >= ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN -> MemoryLevel.LOW
            trim >= ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL -> MemoryLevel.CRITICAL
            trim >= ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW -> MemoryLevel.LOW
            else -> null
        }
    }
}
