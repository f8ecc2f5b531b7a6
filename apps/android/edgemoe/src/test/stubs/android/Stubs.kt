// The few Android classes that MemoryWatch names, with Android's signatures and values: enough to compile and to call
// it on a desktop. Context hands its callbacks what a test says.
@file:Suppress("unused")

package android.content

class Context {
    private val callbacks = mutableListOf<ComponentCallbacks>()
    var lowMemory = false

    fun registerComponentCallbacks(callback: ComponentCallbacks) { callbacks += callback }
    fun unregisterComponentCallbacks(callback: ComponentCallbacks) { callbacks -= callback }
    fun getSystemService(name: String): Any? = if (name == ACTIVITY_SERVICE) android.app.ActivityManager(this) else null
    fun trim(level: Int) = callbacks.forEach { (it as ComponentCallbacks2).onTrimMemory(level) }

    companion object {
        const val ACTIVITY_SERVICE = "activity"
    }
}

interface ComponentCallbacks {
    fun onConfigurationChanged(newConfig: android.content.res.Configuration)
    fun onLowMemory()
}

interface ComponentCallbacks2 : ComponentCallbacks {
    fun onTrimMemory(level: Int)

    companion object {
        const val TRIM_MEMORY_RUNNING_MODERATE = 5
        const val TRIM_MEMORY_RUNNING_LOW = 10
        const val TRIM_MEMORY_RUNNING_CRITICAL = 15
        const val TRIM_MEMORY_UI_HIDDEN = 20
        const val TRIM_MEMORY_BACKGROUND = 40
    }
}
