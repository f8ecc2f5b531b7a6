#include "llama/mtmd.h"

#ifdef EMOE_MTMD

#include "base/error.h"
#include "base/module.h"
#include "base/paths.h"
#include "llama/log.h"

#include <llama.h>

#include <string>

namespace emoe {

namespace {

#if defined(_WIN32)
constexpr const char *k_name = "mtmd.dll";
#elif defined(__APPLE__)
constexpr const char *k_name = "libmtmd.dylib";
#else
constexpr const char *k_name = "libmtmd.so";
#endif

void log_line(ggml_log_level level, const char *text, void *) { log_callback_entry(level, text); }

class Library {
public:
    Library()
        : path_(file_of(reinterpret_cast<const void *>(&llama_decode)).parent_path() / k_name), module_(path_, false) {
        if (!module_.loaded())
            fail(EMOE_ERR_UNSUPPORTED, "pictures need libmtmd, and there is none at `%s`", text_of(path_).c_str());
        find(f_.params, "mtmd_context_params_default");
        find(f_.init, "mtmd_init_from_file");
        find(f_.free, "mtmd_free");
        find(f_.log_set, "mtmd_log_set");
        find(f_.has_vision, "mtmd_support_vision");
        find(f_.is_non_causal, "mtmd_decode_use_non_causal");
        find(f_.uses_mrope, "mtmd_decode_use_mrope");
        find(f_.bitmap_init, "mtmd_bitmap_init");
        find(f_.bitmap_free, "mtmd_bitmap_free");
        find(f_.tokenize, "mtmd_tokenize_from_parts");
        find(f_.chunks_init, "mtmd_input_chunks_init");
        find(f_.chunks_free, "mtmd_input_chunks_free");
        find(f_.chunks_size, "mtmd_input_chunks_size");
        find(f_.chunks_get, "mtmd_input_chunks_get");
        find(f_.chunk_type, "mtmd_input_chunk_get_type");
        find(f_.chunk_text, "mtmd_input_chunk_get_tokens_text");
        find(f_.chunk_image, "mtmd_input_chunk_get_tokens_image");
        find(f_.chunk_n_tokens, "mtmd_input_chunk_get_n_tokens");
        find(f_.chunk_n_pos, "mtmd_input_chunk_get_n_pos");
        find(f_.position, "mtmd_image_tokens_get_decoder_pos");
        find(f_.encode, "mtmd_encode_chunk");
        find(f_.embeddings, "mtmd_get_output_embd");
        // A C++ function: this is its name with the compilers of Linux, macOS and Android.
        find(f_.memory_usage, "_Z21mtmd_get_memory_usagePKc19mtmd_context_params");
        find(f_.picture_info, "stbi_info_from_memory");
        find(f_.picture_load, "stbi_load_from_memory");
        find(f_.picture_free, "stbi_image_free");
        check_params();
        f_.log_set(log_line, nullptr);
    }
    const Mtmd &functions() const { return f_; }

private:
    template <typename Pointer>
    void find(Pointer &to, const char *name) {
        to = module_.function<std::remove_pointer_t<Pointer>>(name);
        if (!to) fail(EMOE_ERR_UNSUPPORTED, "`%s` is another libmtmd: it has no `%s`", text_of(path_).c_str(), name);
    }

    // It says no version. Its defaults are where a struct of another shape would show first.
    void check_params() const {
        mtmd_context_params const p = f_.params();
        bool const same = p.use_gpu && !p.device && p.n_threads == 4 && p.warmup && p.image_min_tokens == -1 &&
                          p.image_max_tokens == -1 && p.batch_max_tokens == 1024 && !p.progress_callback;
        if (!same)
            fail(EMOE_ERR_UNSUPPORTED, "`%s` is another libmtmd than edgemoe was compiled for", text_of(path_).c_str());
    }

    std::filesystem::path const path_;
    Module const module_;
    Mtmd f_;
};

} // namespace

const Mtmd &mtmd() {
    static const Library *const library = new Library; // never closed: threads of its encoders may end after us
    return library->functions();
}

} // namespace emoe

#endif
