// libFuzzer: a file of any bytes is a model or is refused in words, and what is asked of it is answered.
#include <edgemoe.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include <sys/mman.h>
#include <unistd.h>

namespace {

void say_or_end(emoe_status status, const emoe_error &err) {
    if (status != EMOE_OK && (err.message[0] == 0 || strchr(err.message, '\n'))) abort();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static int const file = memfd_create("fuzz.gguf", 0);
    static char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), file);
    if (ftruncate(file, 0) != 0 || pwrite(file, data, n, 0) != static_cast<ssize_t>(n)) return 0;
    emoe_model *model = nullptr;
    emoe_error err = {};
    emoe_status const status = emoe_model_open(path, &model, &err);
    say_or_end(status, err);
    if (status != EMOE_OK) return 0;
    emoe_model_info info = {};
    info.struct_size = sizeof info;
    say_or_end(emoe_model_get_info(model, &info, &err), err);
    for (uint32_t i = 0; i < 4; i++) {
        emoe_layer_info layer = {};
        layer.struct_size = sizeof layer;
        say_or_end(emoe_model_get_layer(model, i, &layer, &err), err);
    }
    char text[256];
    for (const char *key : {"general.name", "general.architecture", "tokenizer.chat_template"})
        (void)emoe_model_meta(model, key, text, sizeof text);
    emoe_model_close(model);
    return 0;
}
