// edgemoe.h: pictures.
#include "base/guard.h"
#include "capi/handles.h"

#include <algorithm>

using namespace emoe;

emoe_status emoe_engine_picture_add(emoe_engine *engine, const char *mmproj, const void *bytes, uint64_t n_bytes,
                                    uint64_t *picture, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(mmproj, "mmproj");
        check_pointer(bytes, "bytes");
        check_pointer(picture, "picture");
        *picture = engine_of(engine).add_picture(mmproj, static_cast<const uint8_t *>(bytes), n_bytes);
    });
}

emoe_status emoe_engine_picture_tokens(const emoe_engine *engine, uint64_t picture, int32_t *tokens, uint32_t cap,
                                       uint32_t *n, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(n, "n");
        std::vector<int32_t> all;
        std::vector<Picture::Part> const &parts = engine_of(engine).picture(picture).parts;
        for (uint32_t i = 0; i < parts.size(); i++) {
            all.insert(all.end(), parts[i].tokens.begin(), parts[i].tokens.end());
            all.insert(all.end(), parts[i].n_row, -1 - static_cast<int32_t>(i));
        }
        if (tokens) std::copy_n(all.begin(), std::min<size_t>(cap, all.size()), tokens);
        *n = static_cast<uint32_t>(all.size());
    });
}

emoe_status emoe_engine_picture_decode(emoe_engine *engine, uint64_t picture, uint32_t part, emoe_error *err) {
    return guarded(err, [&] { engine_of(engine).decode_picture(picture, part); });
}

void emoe_engine_picture_forget(emoe_engine *engine, uint64_t picture) {
    if (engine) (void)guarded(nullptr, [&] { engine_of(engine).forget_picture(picture); });
}
