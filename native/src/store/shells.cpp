#include "store/shells.h"

#include "base/error.h"
#include "base/paths.h"
#include "budget/planner.h"
#include "llama/shell.h"
#include "store/notes.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <set>
#include <system_error>
#include <vector>

namespace fs = std::filesystem;

namespace emoe {

namespace {

constexpr size_t k_keep = 8;                    // shells; the least recently used go first
constexpr auto k_fresh = std::chrono::hours(1); // one used so lately may be another process's that is about to load it
constexpr auto k_unused = std::chrono::hours(24 * 30); // a shell that nobody wanted for so long
constexpr auto k_stale = std::chrono::hours(24); // what a process left that died, and notes of no shell and no model
constexpr uint64_t k_meta_bytes = uint64_t{64} << 20; // more than any tokenizer and metadata take

// "<16 hex digits>": the part of a name that all files of one model share; empty for other files.
std::string stem_of(const fs::path &file) {
    std::string const name = text_of(file.filename());
    size_t const n = name.find_first_not_of("0123456789abcdef");
    return n == 16 && name[16] == '.' ? name.substr(0, n) : "";
}

bool is_temporary(const fs::path &file) {
    return file.extension() == ".measure" || text_of(file.filename()).find(".tmp") != std::string::npos;
}

struct Entry {
    std::vector<fs::path> files;
    fs::file_time_type used = fs::file_time_type::min(); // of the shell, or of the youngest file where there is none
    bool has_shell = false;
};

bool source_exists(const fs::path &notes) {
    std::error_code ignored;
    std::string const source = read_notes(notes).source;
    return !source.empty() && fs::exists(path_of(source), ignored);
}

} // namespace

Shells::Shells(const ModelIndex &index, const std::string &cache_dir) : index_(index) {
    fs::path const folder = path_of(cache_dir) / "shells";
    std::error_code failed;
    fs::create_directories(folder, failed);
    if (failed)
        fail(EMOE_ERR_IO, "cannot make the cache folder `%s`: %s", text_of(folder).c_str(), failed.message().c_str());
    char name[32];
    snprintf(name, sizeof name, "%016" PRIx64 ".gguf", index.identity);
    path_ = folder / name;
}

fs::path Shells::beside(const char *extension) const {
    fs::path other = path_;
    return other.replace_extension(extension);
}

bool Shells::whole() const {
    try {
        check_shell(index_, text_of(path_), true);
        return true;
    } catch (const Error &) {
        return false;
    }
}

void Shells::make() const {
    note_use();
    if (!whole()) {
        std::error_code unknown;
        fs::space_info const space = fs::space(path_.parent_path(), unknown);
        uint64_t const need = index_.dense_bytes + k_meta_bytes;
        if (!unknown && space.available < need)
            fail(EMOE_ERR_IO, "`%s` has %s free, the dense part of %s takes %s", text_of(path_.parent_path()).c_str(),
                 format_bytes(space.available).c_str(), index_.name.c_str(), format_bytes(need).c_str());
        write_shell(index_, text_of(path_), true);
    }
    std::error_code ignored;
    fs::last_write_time(path_, fs::file_time_type::clock::now(), ignored); // only the order of pruning
}

void Shells::note_use() const {
    prune();
    std::error_code ignored;
    std::string const source = text_of(fs::absolute(path_of(index_.layout.paths.front()), ignored));
    Notes notes = read_notes(beside(".notes"));
    if (notes.source != source) {
        notes.source = source;
        write_notes(beside(".notes"), notes);
    }
    fs::last_write_time(beside(".notes"), fs::file_time_type::clock::now(), ignored);
}

// Deletes what a dead process left, shells of models that are gone, and the least recently used beyond k_keep.
void Shells::prune() const {
    auto const now = fs::file_time_type::clock::now();
    std::map<std::string, Entry> entries;
    for (fs::path const &file : entries_of(path_.parent_path())) {
        std::error_code gone; // another process prunes as well
        fs::file_time_type const used = fs::last_write_time(file, gone);
        std::string const stem = stem_of(file);
        if (gone || stem.empty() || stem == stem_of(path_)) continue;
        if (is_temporary(file)) {
            if (used < now - k_stale) fs::remove(file, gone);
            continue;
        }
        Entry &entry = entries[stem];
        bool const shell = file.extension() == ".gguf";
        entry.used = shell || !entry.has_shell ? (shell ? used : std::max(entry.used, used)) : entry.used;
        entry.has_shell = entry.has_shell || shell;
        entry.files.push_back(file);
    }
    std::vector<const Entry *> shells, others;
    for (auto const &each : entries) (each.second.has_shell ? shells : others).push_back(&each.second);
    std::sort(shells.begin(), shells.end(), [](const Entry *a, const Entry *b) { return a->used > b->used; });
    auto const drop = [](const Entry &entry) {
        std::error_code failed;
        for (fs::path const &file : entry.files) fs::remove(file, failed);
    };
    auto const has_source = [](const Entry &entry) {
        return std::any_of(entry.files.begin(), entry.files.end(),
                           [](const fs::path &f) { return f.extension() == ".notes" && source_exists(f); });
    };
    for (size_t i = 0; i < shells.size(); i++) {
        bool const old = shells[i]->used < now - k_unused;
        if (shells[i]->used < now - k_fresh && (i + 1 >= k_keep || old || !has_source(*shells[i]))) drop(*shells[i]);
    }
    for (const Entry *entry : others)
        if (entry->used < now - k_stale && !has_source(*entry)) drop(*entry);
}

} // namespace emoe
