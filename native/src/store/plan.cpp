#include "store/plan.h"

#include "llama/info.h"
#include "llama/picture.h"
#include "llama/prices.h"
#include "llama/profile.h"
#include "store/sizes.h"

#include <algorithm>

namespace emoe {

emoe_plan plan_with(const emoe_model_info &model, const Sizes &sizes, const emoe_setup &setup, uint64_t process_bytes,
                    emoe_plan *known) {
    Budget budget;
    budget.process_bytes = process_bytes;
    budget.later_bytes = setup.later_bytes;
    if (setup.mmproj) {
        EncoderSizes const encoder = measure_encoder(setup.mmproj);
        budget.picture_bytes = encoder.weight_bytes + encoder.buffer_bytes;
    }
    budget.n_threads = setup.n_threads != 0 ? setup.n_threads : physical_cores();
    budget.n_ctx = setup.n_ctx;
    budget.n_ubatch = setup.n_ubatch;
    budget.rows = setup.device == 0;
    budget.scaled = (setup.rope_given & ~uint32_t{EMOE_YARN_ORIG_CTX}) != 0;
    Bounds const bounds = bounds_of(model, sizes, budget);
    known->smallest_bytes = bounds.smallest_bytes;
    known->resident_bytes = bounds.enough_bytes;
    // With a GPU no budget is known to be enough: its driver takes memory as it goes.
    uint64_t const enough = setup.device == 0 ? bounds.enough_bytes : UINT64_MAX;
    budget.bytes = budget_bytes(setup.memory_kind, setup.memory, enough, machine());
    known->budget_bytes = budget.bytes;
    return make_plan(model, sizes, budget, bounds);
}

emoe_plan plan_gguf(const ModelIndex &index, const std::string &cache_dir, const emoe_setup &setup, emoe_plan *known) {
    uint64_t const rss = rss_bytes();
    if (rss == 0) fail(EMOE_ERR_UNSUPPORTED, "this system does not say how much memory a process uses");
    if (setup.lossy_nats > 0) (void)load_prices(index, setup.profile); // refused before anything is loaded
    if (setup.profile) (void)load_uses(index, setup.profile);
    emoe_setup shaped = setup;
    if (shaped.n_threads == 0) shaped.n_threads = physical_cores();
    SizeBook book(Shells(index, cache_dir), shaped);
    return plan_with(host_info(index, setup), std::ref(book), shaped, std::max(setup.process_bytes, rss), known);
}

} // namespace emoe
