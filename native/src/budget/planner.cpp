#include "budget/planner.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <optional>
#include <vector>

namespace emoe {

namespace {

constexpr uint64_t k_kib = 1024;
constexpr uint64_t k_mib = 1024 * k_kib;

// Tokens computed at once in prefill, best first: each expert is read once a batch.
constexpr uint32_t k_ubatches[] = {512, 256, 128, 64, 32};
// Context lengths tried when none is asked for, best first.
constexpr uint32_t k_contexts[] = {4096, 2048, 1024, 512};

constexpr uint64_t k_lent_share = 2;   // a large batch may borrow 1/2 of the expert cache while it is computed
constexpr uint64_t k_kv_share = 3;     // an unasked context may take 1/3 of what it shares with cache and work space
constexpr uint32_t k_short_ctx = 1024; // below this a chat is hardly one: only if nothing longer fits
constexpr double k_auto_share = 0.85;  // of what is available now; the rest is the user's other programs'
constexpr double k_million = 1e6;
// Between processes that do the same, resident memory differs by some pages; the smallest budget allows for that.
constexpr uint64_t k_slack_bytes = 2 * k_mib;
// Rows of tables: the bytes for those that were used lately, and for reads on their way. Text uses few rows often
// (docs/experiments/tables-by-row.md).
constexpr uint64_t k_row_share = 32, k_rows_least = 1 * k_mib, k_rows_most = 8 * k_mib;
constexpr uint64_t k_table_least = 8 * k_mib; // smaller tables are not worth a read a token
// No machine has more: 256 TiB. Sums and products of sizes that are cut to it stay far inside 64 bits.
constexpr uint64_t k_most_bytes = uint64_t{1} << 48;

template <size_t N>
std::vector<uint32_t> at_most(const uint32_t (&values)[N], uint32_t most) {
    std::vector<uint32_t> list;
    for (uint32_t const v : values) list.push_back(std::min(v, most));
    list.erase(std::unique(list.begin(), list.end()), list.end());
    return list;
}

// Context lengths to try, longest first: never longer than what the model was trained for, unless RoPE is scaled.
std::vector<uint32_t> contexts(const emoe_model_info &model, const Budget &budget) {
    uint32_t const longest = model.n_ctx_train != 0 ? model.n_ctx_train : k_contexts[0];
    if (budget.n_ctx != 0 && budget.scaled) return {budget.n_ctx};
    if (budget.n_ctx != 0) return {std::min(budget.n_ctx, longest)};
    return at_most(k_contexts, longest);
}

// Batch sizes to try, largest first: never larger than the context.
std::vector<uint32_t> ubatches(const Budget &budget, uint32_t n_ctx) {
    if (budget.n_ubatch != 0) return {std::min(budget.n_ubatch, n_ctx)};
    return at_most(k_ubatches, n_ctx);
}

// What the dense part takes.
struct Dense {
    uint64_t bytes;           // in memory
    uint64_t table_bytes;     // and in the files
    uint64_t row_cache_bytes; // for rows of those
};

Dense in_memory(const emoe_model_info &model, const emoe_context_sizes &size) {
    return {model.dense_bytes - std::min(model.dense_bytes, size.gpu_dense_bytes), 0, 0};
}

Dense by_row(const emoe_model_info &model, const emoe_context_sizes &size, const Budget &budget) {
    Dense const whole = in_memory(model, size);
    if (!budget.rows || model.table_bytes < k_table_least || model.table_bytes > whole.bytes) return whole;
    return {whole.bytes - model.table_bytes, model.table_bytes,
            std::clamp(model.table_bytes / k_row_share, k_rows_least, k_rows_most)};
}

uint64_t fixed_bytes_of(const Dense &dense, const emoe_context_sizes &size, const Budget &budget) {
    return budget.process_bytes + size.vocab_bytes + dense.bytes + dense.row_cache_bytes + size.kv_bytes +
           size.output_bytes + size.decode_bytes;
}

// Never both at once.
uint64_t lent_bytes_of(const emoe_context_sizes &size, const Budget &budget) {
    return std::max(size.prefill_bytes, budget.picture_bytes);
}

// The smallest budget, a whole number of MiB, that leaves `need` beside its own margin.
uint64_t with_margin(uint64_t need) {
    need = std::min(need, k_most_bytes) + k_slack_bytes;
    uint64_t const bytes = std::max(need + margin_bytes(0), (need * 1000 + 984) / 985 + k_kib);
    return (bytes + k_mib - 1) / k_mib * k_mib;
}

// The budget that holds a model of which cache_bytes are cached, with this context and batch.
uint64_t budget_for(const Dense &dense, const emoe_context_sizes &size, const Budget &budget, uint64_t cache_bytes) {
    return with_margin(fixed_bytes_of(dense, size, budget) + cache_bytes + lent_bytes_of(size, budget) +
                       budget.later_bytes);
}

// The plan with this context and batch, if it can decode at all.
std::optional<emoe_plan> candidate(const emoe_model_info &model, const emoe_context_sizes &size, const Budget &budget,
                                   uint32_t n_ctx, uint32_t n_ubatch) {
    uint64_t const bytes = budget.bytes, margin = margin_bytes(bytes);
    auto const fits = [&](const Dense &dense, uint64_t slot_bytes) {
        return bytes >= margin + fixed_bytes_of(dense, size, budget) + slot_bytes + lent_bytes_of(size, budget) +
                            budget.later_bytes;
    };
    // Memory is worth more to experts, of which a token uses many, than to tables, of which it uses a few rows.
    Dense const whole = in_memory(model, size);
    Dense const dense = fits(whole, model.slot_bytes) ? whole : by_row(model, size, budget);
    if (!fits(dense, model.slot_min_bytes)) return std::nullopt;
    uint64_t const taken = margin + fixed_bytes_of(dense, size, budget);
    emoe_plan p = {};
    p.struct_size = sizeof p;
    p.n_ctx = n_ctx;
    p.n_ubatch = n_ubatch;
    p.n_threads = budget.n_threads;
    p.budget_bytes = bytes;
    p.process_bytes = budget.process_bytes + size.vocab_bytes;
    p.dense_bytes = dense.bytes;
    p.table_bytes = dense.table_bytes;
    p.row_cache_bytes = dense.row_cache_bytes;
    p.kv_bytes = size.kv_bytes;
    p.compute_bytes = size.compute_bytes;
    p.output_bytes = size.output_bytes;
    p.scratch_bytes = size.scratch_bytes;
    p.decode_bytes = size.decode_bytes;
    p.prefill_bytes = size.prefill_bytes;
    p.margin_bytes = margin;
    p.slot_min_bytes = model.slot_min_bytes;
    p.n_expert_total = model.n_expert_total;
    p.gpu_bytes = size.gpu_bytes;
    p.picture_bytes = budget.picture_bytes;
    note_cache(&p, model, std::min(bytes - taken, model.slot_bytes + lent_bytes_of(size, budget)));
    return p;
}

// What a shape takes is asked of llama.cpp, which is slow for a large model: where the smallest does not fit, none does.
std::optional<emoe_plan> smallest_batch(const emoe_model_info &model, const Sizes &sizes, const Budget &budget,
                                        uint32_t n_ctx) {
    uint32_t const n_ubatch = ubatches(budget, n_ctx).back();
    return candidate(model, sizes(n_ctx, n_ubatch), budget, n_ctx, n_ubatch);
}

// The largest batch whose work space the cache can well lend, else the smallest that works.
std::optional<emoe_plan> best_batch(const emoe_model_info &model, const Sizes &sizes, const Budget &budget,
                                    uint32_t n_ctx) {
    std::optional<emoe_plan> best = smallest_batch(model, sizes, budget, n_ctx);
    if (!best) return best;
    for (uint32_t const n_ubatch : ubatches(budget, n_ctx)) {
        std::optional<emoe_plan> const found = candidate(model, sizes(n_ctx, n_ubatch), budget, n_ctx, n_ubatch);
        if (!found) continue;
        best = found;
        bool const evicts_none = found->cache_bytes >= model.slot_bytes + lent_bytes(*found);
        if (evicts_none || found->prefill_bytes * k_lent_share <= found->cache_bytes) break;
    }
    return best;
}

} // namespace

uint64_t margin_bytes(uint64_t budget_bytes) {
    return std::max(12 * k_mib, std::min(budget_bytes, k_most_bytes) * 15 / 1000);
}

uint64_t fixed_bytes(const emoe_plan &p) {
    return p.process_bytes + p.dense_bytes + p.row_cache_bytes + p.kv_bytes + p.output_bytes + p.decode_bytes;
}

uint64_t lent_bytes(const emoe_plan &p) { return std::max(p.prefill_bytes, p.picture_bytes); }

uint64_t cache_min_bytes(const emoe_plan &p) { return p.slot_min_bytes + lent_bytes(p); }

void note_cache(emoe_plan *plan, const emoe_model_info &model, uint64_t cache_bytes) {
    plan->fraction = std::min(1.0, static_cast<double>(cache_bytes) / static_cast<double>(model.slot_bytes));
    plan->cache_bytes = cache_bytes;
    plan->n_slot = static_cast<uint64_t>(plan->fraction * static_cast<double>(model.n_expert_total));
}

Bounds bounds_of(const emoe_model_info &model, const Sizes &sizes, const Budget &budget) {
    uint32_t const shortest = contexts(model, budget).back(), longest = contexts(model, budget).front();
    emoe_context_sizes const least = sizes(shortest, ubatches(budget, shortest).back());
    emoe_context_sizes const most = sizes(longest, ubatches(budget, longest).front());
    return {
        budget_for(by_row(model, least, budget), least, budget, model.slot_min_bytes),
        budget_for(in_memory(model, most), most, budget, model.slot_bytes),
    };
}

uint64_t budget_bytes(uint32_t kind, uint64_t value, uint64_t enough_bytes, const Machine &m) {
    switch (kind) {
    case EMOE_BUDGET_SHARE:
        return static_cast<uint64_t>(static_cast<double>(m.limit_bytes) * static_cast<double>(value) / k_million);
    case EMOE_BUDGET_AUTO: {
        // What this process has already is part of its budget.
        double const free = static_cast<double>(m.available_bytes + m.process.rss_bytes);
        return std::min(static_cast<uint64_t>(free * k_auto_share), enough_bytes);
    }
    default:
        if (value == 0) fail(EMOE_ERR_ARGUMENT, "a memory budget of 0 bytes holds nothing");
        if (m.limit_bytes != 0 && value > m.limit_bytes && m.limit_bytes < enough_bytes)
            fail(EMOE_ERR_ARGUMENT, "a budget of %s is more than this process may use, %s", format_bytes(value).c_str(),
                 format_bytes(m.limit_bytes).c_str());
        return std::min(value, k_most_bytes);
    }
}

emoe_plan make_plan(const emoe_model_info &model, const Sizes &sizes, const Budget &budget, const Bounds &bounds) {
    std::vector<uint32_t> const lengths = contexts(model, budget);
    auto const refuse = [&] {
        throw BudgetError(bounds.smallest_bytes, "a budget of " + format_bytes(budget.bytes) + " is too small for " +
                                                     model.name + ": it needs " + format_bytes(bounds.smallest_bytes));
    };
    if (!smallest_batch(model, sizes, budget, lengths.back())) refuse();
    std::optional<emoe_plan> chosen;
    for (uint32_t const n_ctx : lengths) {
        std::optional<emoe_plan> const found = best_batch(model, sizes, budget, n_ctx);
        if (!found || (chosen && n_ctx < k_short_ctx)) continue;
        chosen = found;
        uint64_t const shared = found->kv_bytes + found->output_bytes + found->decode_bytes + found->cache_bytes;
        if (found->kv_bytes * k_kv_share <= shared) break;
    }
    if (!chosen) refuse(); // sizes are measured, by a host perhaps: asked again they can be larger
    chosen->smallest_bytes = bounds.smallest_bytes;
    chosen->resident_bytes = bounds.enough_bytes;
    return *chosen;
}

std::string format_bytes(uint64_t bytes) {
    char text[64];
    snprintf(text, sizeof text, "%" PRIu64 " MiB (%" PRIu64 " bytes)", (bytes + k_mib - 1) / k_mib, bytes);
    return text;
}

} // namespace emoe
