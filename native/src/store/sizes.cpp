#include "store/sizes.h"

#include "base/machine.h"
#include "base/paths.h"
#include "llama/devices.h"
#include "llama/measure.h"
#include "llama/shell.h"
#include "llama/stamp.h"

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <system_error>

namespace fs = std::filesystem;

namespace emoe {

namespace {

// The sizes in the order in which notes have them.
constexpr uint64_t emoe_context_sizes::*k_fields[] = {
    &emoe_context_sizes::kv_bytes,      &emoe_context_sizes::compute_bytes, &emoe_context_sizes::output_bytes,
    &emoe_context_sizes::scratch_bytes, &emoe_context_sizes::vocab_bytes,   &emoe_context_sizes::decode_bytes,
    &emoe_context_sizes::prefill_bytes, &emoe_context_sizes::gpu_bytes,     &emoe_context_sizes::gpu_dense_bytes};

std::string text_of(const emoe_context_sizes &sizes, uint64_t once_bytes) {
    std::string text;
    for (auto const field : k_fields) text += std::to_string(sizes.*field) + " ";
    return text + std::to_string(once_bytes);
}

bool parse(const std::string &text, emoe_context_sizes *sizes, uint64_t *once_bytes) {
    std::istringstream in(text);
    *sizes = {};
    sizes->struct_size = sizeof *sizes;
    for (auto const field : k_fields)
        if (!(in >> sizes->*field)) return false;
    return in >> *once_bytes && *once_bytes <= sizes->vocab_bytes;
}

} // namespace

SizeBook::SizeBook(Shells shells, const emoe_setup &setup)
    : shells_(std::move(shells)), setup_(setup), has_once_(has_loaded()) {
    Notes const notes = read_notes(shells_.beside(".notes"));
    if (notes.library != build_stamp()) return;
    Known known;
    for (auto const &[key, text] : notes.sizes)
        if (parse(text, &known.sizes, &known.once_bytes)) known_.emplace(key, known);
}

SizeBook::~SizeBook() {
    std::error_code ignored;
    if (!temporary_.empty()) fs::remove(temporary_, ignored);
    if (!changed_) return;
    trim_heap();
    if (before_bytes_ != 0) {
        uint64_t const after = rss_bytes();
        Known &first = known_.at(first_);
        first.once_bytes = std::min(after - std::min(after, before_bytes_), first.sizes.vocab_bytes);
    }
    try {
        save();
    } catch (const std::exception &) { // costs the measurement again
    }
}

emoe_context_sizes SizeBook::operator()(uint32_t n_ctx, uint32_t n_ubatch) {
    std::string const key = shape(n_ctx, n_ubatch);
    auto found = known_.find(key);
    if (found == known_.end()) {
        found = known_.emplace(key, measure(n_ctx, n_ubatch)).first;
        changed_ = true;
    }
    emoe_context_sizes sizes = found->second.sizes;
    sizes.vocab_bytes = vocab_bytes();
    return sizes;
}

// The vocabulary is measured as growth of the process: the second time it finds the memory of the first. What a process
// has for good after its first model is none of the next one's. Measured for every shape and the same for all, it is
// taken once: a plan that fits with the first shapes would not with the last ones, and all of it be worth nothing.
uint64_t SizeBook::vocab_bytes() {
    if (vocab_bytes_) return *vocab_bytes_;
    uint64_t own = 0, once = 0;
    for (auto const &known : known_) {
        own = std::max(own, known.second.sizes.vocab_bytes - known.second.once_bytes);
        once = std::max(once, known.second.once_bytes);
    }
    vocab_bytes_ = own + (has_once_ ? 0 : once);
    return *vocab_bytes_;
}

// All that sizes depend on. A GPU by what it is: its number changes with what else is plugged in.
std::string SizeBook::shape(uint32_t n_ctx, uint32_t n_ubatch) const {
    char text[160];
    snprintf(text, sizeof text, "ctx %u ubatch %u threads %u outputs %u kv %u%s", n_ctx, n_ubatch, setup_.n_threads,
             setup_.n_outputs, setup_.kv_type, setup_.prefetch == EMOE_PREFETCH_OFF ? " prefetch off" : "");
    std::string shape = text;
    if (n_sequence(setup_) > 1) shape += " sequences " + std::to_string(n_sequence(setup_));
    if (setup_.device == 0) return shape;
    std::string name = gpu_description(setup_.device);
    std::replace(name.begin(), name.end(), ':', ' ');
    return shape + " gpu-layers " + std::to_string(setup_.n_gpu_layer) + " on " + name;
}

SizeBook::Known SizeBook::measure(uint32_t n_ctx, uint32_t n_ubatch) {
    if (!k_memory_shells && temporary_.empty()) {
        // A name of its own for every book: several threads may plan at once.
        char name[64];
        snprintf(name, sizeof name, ".%u-%p.measure", process_id(), static_cast<void *>(this));
        fs::path const path = shells_.beside(name);
        write_shell(shells_.index(), text_of(path), false);
        temporary_ = path;
    }
    emoe_setup shaped = setup_;
    shaped.n_ctx = n_ctx;
    shaped.n_ubatch = n_ubatch;
    if (!has_loaded()) {
        before_bytes_ = rss_bytes();
        first_ = shape(n_ctx, n_ubatch);
    }
    return {measure_context(shells_.index(), text_of(temporary_), shaped), 0};
}

void SizeBook::save() const {
    fs::path const path = shells_.beside(".notes");
    Notes notes = read_notes(path); // another process may have added to them
    std::string const stamp = build_stamp();
    if (notes.library != stamp) notes.sizes.clear();
    notes.library = stamp;
    for (auto const &[key, known] : known_) notes.sizes[key] = text_of(known.sizes, known.once_bytes);
    if (notes.source.empty()) {
        std::error_code ignored;
        notes.source = text_of(fs::absolute(path_of(shells_.index().layout.paths.front()), ignored));
    }
    write_notes(path, notes);
}

} // namespace emoe
