package android.app

class ActivityManager(private val context: android.content.Context) {
    class MemoryInfo {
        @JvmField var lowMemory = false
    }

    fun getMemoryInfo(info: MemoryInfo) { info.lowMemory = context.lowMemory }
}
