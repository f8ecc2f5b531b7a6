// An Android library: io.edgemoe.Session over libedgemoe. Put libedgemoe.so, libllama.so and the libggml*.so of each ABI
// into src/main/jniLibs/<ABI>/; docs/embedding.md says how they are built with the NDK.
plugins {
    id("com.android.library") version "8.13.0"
    id("org.jetbrains.kotlin.android") version "2.2.20"
}

val prefix: String by project // -Pprefix=: `cmake --install` of native/ for this ABI
val llamaLib: String by project // -PllamaLib=: folder of libllama.so for this ABI

android {
    namespace = "io.edgemoe"
    compileSdk = 35
    defaultConfig {
        minSdk = 26
        ndk { abiFilters += "arm64-v8a" }
        externalNativeBuild { cmake { arguments("-DEDGEMOE_PREFIX=$prefix", "-DLLAMA_LIB=$llamaLib") } }
    }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

dependencies {
    implementation("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.10.2")
}
