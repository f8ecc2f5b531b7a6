// libmtmd, llama.cpp's library of picture encoders. Not linked: it is looked for beside libllama when it is first needed,
// so that what has none runs all the same. Its header says what its functions take: a build without it has no pictures.
#pragma once

#if defined(__has_include)
#if __has_include(<mtmd.h>)
#define EMOE_MTMD
#endif
#endif

#ifdef EMOE_MTMD

#include <mtmd.h>

#include <map>

namespace emoe {

// What is used of it: the functions of mtmd.h, and of stb_image, which it carries.
struct Mtmd {
    using Pixels = unsigned char;

    decltype(&mtmd_context_params_default) params = nullptr;
    decltype(&mtmd_init_from_file) init = nullptr;
    decltype(&mtmd_free) free = nullptr;
    decltype(&mtmd_log_set) log_set = nullptr;
    decltype(&mtmd_support_vision) has_vision = nullptr;
    decltype(&mtmd_decode_use_non_causal) is_non_causal = nullptr;
    decltype(&mtmd_decode_use_mrope) uses_mrope = nullptr;
    decltype(&mtmd_bitmap_init) bitmap_init = nullptr;
    decltype(&mtmd_bitmap_free) bitmap_free = nullptr;
    decltype(&mtmd_tokenize_from_parts) tokenize = nullptr;
    decltype(&mtmd_input_chunks_init) chunks_init = nullptr;
    decltype(&mtmd_input_chunks_free) chunks_free = nullptr;
    decltype(&mtmd_input_chunks_size) chunks_size = nullptr;
    decltype(&mtmd_input_chunks_get) chunks_get = nullptr;
    decltype(&mtmd_input_chunk_get_type) chunk_type = nullptr;
    decltype(&mtmd_input_chunk_get_tokens_text) chunk_text = nullptr;
    decltype(&mtmd_input_chunk_get_tokens_image) chunk_image = nullptr;
    decltype(&mtmd_input_chunk_get_n_tokens) chunk_n_tokens = nullptr;
    decltype(&mtmd_input_chunk_get_n_pos) chunk_n_pos = nullptr;
    decltype(&mtmd_image_tokens_get_decoder_pos) position = nullptr;
    decltype(&mtmd_encode_chunk) encode = nullptr;
    decltype(&mtmd_get_output_embd) embeddings = nullptr;
    std::map<ggml_backend_dev_t, size_t> (*memory_usage)(const char *, mtmd_context_params) = nullptr;
    int (*picture_info)(const Pixels *bytes, int n, int *width, int *height, int *channels) = nullptr;
    Pixels *(*picture_load)(const Pixels *bytes, int n, int *width, int *height, int *channels, int wanted) = nullptr;
    void (*picture_free)(void *pixels) = nullptr;
};

// Throws EMOE_ERR_UNSUPPORTED, saying why, where there is none, or another one than this library was compiled for.
const Mtmd &mtmd();

} // namespace emoe

#endif
