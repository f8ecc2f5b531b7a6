#include "store/shells.h"

#include "budget/process.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <vector>

namespace fs = std::filesystem;

namespace emoe {

namespace {

constexpr size_t k_keep = 8;                    // shells; the least recently used go first
constexpr auto k_fresh = std::chrono::hours(1); // one used so lately may be another process's that is about to load it
constexpr uint64_t k_meta_bytes = uint64_t{64} << 20;     // more than any tokenizer and metadata take
constexpr auto k_stale = std::chrono::hours(24);          // a temporary file this old was left by a process that died
constexpr const char *k_book_version = "edgemoe sizes 1"; // of the file that SizeBook keeps

std::string json_text(const std::string &text) {
    std::string out = "\"";
    for (char const c : text) {
        auto const b = static_cast<unsigned char>(c);
        char escaped[8];
        if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (b < 0x20) {
            snprintf(escaped, sizeof escaped, "\\u%04x", b);
            out += escaped;
        } else {
            out += c;
        }
    }
    return out + "\"";
}

// Written to a name of its own, then renamed. A failure is ignored: it costs what was remembered.
void write_atomically(const fs::path &path, const std::string &text) {
    fs::path const temporary = path.string() + "." + std::to_string(getpid()) + ".tmp";
    {
        std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
        out << text;
        out.close();
        if (!out) {
            std::error_code ignored;
            fs::remove(temporary, ignored);
            return;
        }
    }
    std::error_code failed;
    fs::rename(temporary, path, failed);
    if (failed) fs::remove(temporary, failed);
}

} // namespace

Shells::Shells(const emoe_model *model, const emoe_model_info &info, const std::string &cache_dir)
    : model_(model), info_(info) {
    fs::path const folder = fs::path(cache_dir) / "shells";
    std::error_code failed;
    fs::create_directories(folder, failed);
    if (failed) fail(EMOE_ERR_IO, "cannot make the cache folder `%s`: %s", folder.c_str(), failed.message().c_str());
    char name[32];
    snprintf(name, sizeof name, "%016" PRIx64 ".gguf", info.identity);
    path_ = folder / name;
}

fs::path Shells::beside(const char *extension) const {
    fs::path other = path_;
    return other.replace_extension(extension);
}

void Shells::make(const std::string &source) const {
    if (!whole()) {
        prune();
        std::error_code unknown;
        fs::space_info const space = fs::space(path_.parent_path(), unknown);
        if (!unknown && space.available < info_.dense_bytes + k_meta_bytes)
            fail(EMOE_ERR_IO, "`%s` has %s free, the dense part of %s takes %s", path_.parent_path().c_str(),
                 format_bytes(space.available).c_str(), info_.name,
                 format_bytes(info_.dense_bytes + k_meta_bytes).c_str());
        call([&](emoe_error *err) { return emoe_shell_write(model_, path_.c_str(), 1, err); });
    }
    // What it is of, so that the command line's pruning sees that its model is still there; and that it was used now.
    std::error_code ignored;
    if (!fs::exists(beside(".json"), ignored))
        write_atomically(beside(".json"), "{\"source\": " + json_text(fs::absolute(source, ignored).string()) + "}");
    fs::last_write_time(path_, fs::file_time_type::clock::now(), ignored);
}

// Deletes what a dead process left, and the least recently used shells beyond k_keep.
void Shells::prune() const {
    std::error_code ignored;
    std::vector<std::pair<fs::file_time_type, fs::path>> shells;
    for (fs::directory_entry const &entry : fs::directory_iterator(path_.parent_path(), ignored)) {
        fs::path const &file = entry.path();
        std::error_code gone; // another process prunes as well
        fs::file_time_type const used = fs::last_write_time(file, gone);
        if (gone || file == path_) continue;
        std::string const name = file.filename().string();
        if (file.extension() == ".gguf")
            shells.emplace_back(used, file);
        else if ((file.extension() == ".measure" || name.find(".tmp") != std::string::npos) &&
                 used < fs::file_time_type::clock::now() - k_stale)
            fs::remove(file, gone);
    }
    std::sort(shells.rbegin(), shells.rend());
    for (size_t i = k_keep - 1; i < shells.size(); i++) {
        if (shells[i].first > fs::file_time_type::clock::now() - k_fresh) continue;
        for (const char *extension : {".gguf", ".json", ".sizes"})
            fs::remove(fs::path(shells[i].second).replace_extension(extension), ignored);
    }
}

SizeBook::SizeBook(const emoe_model *model, const emoe_model_info &info, const Shells &shells, uint32_t n_threads,
                   uint32_t kv_type)
    : model_(model), info_(info), shells_(shells), n_threads_(n_threads), kv_type_(kv_type),
      file_(shells.beside(".sizes")) {
    read();
}

SizeBook::~SizeBook() {
    std::error_code ignored;
    if (!temporary_.empty()) fs::remove(temporary_, ignored);
    if (!changed_) return;
    trim_heap();
    try {
        save();
    } catch (const std::exception &) { // costs the measurement again
    }
}

emoe_context_sizes SizeBook::operator()(uint32_t n_ctx, uint32_t n_ubatch) {
    char key[96];
    snprintf(key, sizeof key, "%u %u %u %u", n_ctx, n_ubatch, n_threads_, kv_type_);
    auto found = known_.find(key);
    if (found == known_.end()) {
        found = known_.emplace(key, measure(n_ctx, n_ubatch)).first;
        changed_ = true;
    }
    emoe_context_sizes sizes = found->second;
    // The vocabulary is measured as growth of the process: the second time it finds the memory of the first.
    for (auto const &other : known_) sizes.vocab_bytes = std::max(sizes.vocab_bytes, other.second.vocab_bytes);
    return sizes;
}

emoe_context_sizes SizeBook::measure(uint32_t n_ctx, uint32_t n_ubatch) {
    fs::path shell = shells_.path();
    if (!shells_.whole()) {
        if (temporary_.empty()) {
            // A name of its own for every book: several threads may plan at once.
            char name[64];
            snprintf(name, sizeof name, ".%ld-%p.measure", static_cast<long>(getpid()), static_cast<void *>(this));
            fs::path const path = shells_.beside(name);
            call([&](emoe_error *err) { return emoe_shell_write(model_, path.c_str(), 0, err); });
            temporary_ = path;
        }
        shell = temporary_;
    }
    emoe_context_params params = {};
    params.struct_size = sizeof params;
    params.n_ctx = n_ctx;
    params.n_ubatch = n_ubatch;
    params.n_threads = n_threads_;
    params.n_outputs_max = 1;
    params.kv_type = kv_type_;
    emoe_context_sizes sizes = {};
    sizes.struct_size = sizeof sizes;
    call([&](emoe_error *err) { return emoe_context_measure(model_, shell.c_str(), &params, &sizes, err); });
    sizes.output_bytes = std::max<uint64_t>(sizes.output_bytes, uint64_t{info_.n_vocab} * sizeof(float));
    return sizes;
}

// A line for the version, one for the library, then one for each shape: its key, a colon, its sizes.
void SizeBook::read() {
    std::ifstream in(file_);
    std::string line;
    if (!std::getline(in, line) || line != k_book_version) return;
    if (!std::getline(in, line) || line != library_stamp()) return;
    while (std::getline(in, line)) {
        size_t const colon = line.find(": ");
        if (colon == std::string::npos) continue;
        std::istringstream values(line.substr(colon + 2));
        emoe_context_sizes s = {};
        s.struct_size = sizeof s;
        if (values >> s.kv_bytes >> s.compute_bytes >> s.output_bytes >> s.scratch_bytes >> s.vocab_bytes >>
            s.decode_bytes >> s.prefill_bytes)
            known_.emplace(line.substr(0, colon), s);
    }
}

void SizeBook::save() const {
    std::ostringstream out;
    out << k_book_version << '\n' << library_stamp() << '\n';
    for (auto const &[key, s] : known_)
        out << key << ": " << s.kv_bytes << ' ' << s.compute_bytes << ' ' << s.output_bytes << ' ' << s.scratch_bytes
            << ' ' << s.vocab_bytes << ' ' << s.decode_bytes << ' ' << s.prefill_bytes << '\n';
    write_atomically(file_, out.str());
}

} // namespace emoe
