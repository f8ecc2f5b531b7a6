#include "llama/prices.h"

#include "base/error.h"
#include "llama/profile.h"

#include <unistd.h>

namespace emoe {

namespace {

constexpr char k_cost[] = "edgemoe.lossy.cost";

// A float32 array as numbers; empty when the key is absent or of another type.
template <class T>
std::vector<T> numbers(const gguf_context *g, const char *key) {
    int64_t const id = gguf_find_key(g, key);
    if (id < 0 || gguf_get_kv_type(g, id) != GGUF_TYPE_ARRAY || gguf_get_arr_type(g, id) != GGUF_TYPE_FLOAT32)
        return {};
    auto const *values = static_cast<const float *>(gguf_get_arr_data(g, id));
    return std::vector<T>(values, values + gguf_get_arr_n(g, id));
}

Prices parse(const gguf_context *g, const std::string &path, size_t n_expert) {
    Prices prices;
    prices.cost = numbers<float>(g, k_cost);
    prices.limit = numbers<double>(g, "edgemoe.lossy.limit");
    prices.raw = numbers<double>(g, "edgemoe.lossy.raw");
    prices.nats = numbers<double>(g, "edgemoe.lossy.nats");
    std::string const problem = price_problem(prices, n_expert);
    if (!problem.empty())
        fail(EMOE_ERR_FORMAT, "`%s` does not say what leaving out this model's experts costs: %s", path.c_str(),
             problem.c_str());
    return prices;
}

} // namespace

Prices load_prices(const ModelIndex &index, const char *profile) {
    std::string const &model = index.layout.paths.front();
    size_t const n_expert = index.layout.n_expert_total;
    if (profile) {
        GgufPtr const g = open_calibration(profile);
        if (gguf_find_key(g.get(), k_cost) >= 0) return parse(g.get(), profile, n_expert);
        fail(EMOE_ERR_UNSUPPORTED, "`%s` does not say what leaving out experts costs; `edgemoe calibrate` measures it",
             profile);
    }
    if (gguf_find_key(index.meta.get(), k_cost) >= 0) return parse(index.meta.get(), model, n_expert);
    std::string const beside = model + ".calibration";
    if (access(beside.c_str(), R_OK) == 0) {
        GgufPtr const g = open_calibration(beside);
        if (gguf_find_key(g.get(), k_cost) >= 0) return parse(g.get(), beside, n_expert);
    }
    fail(EMOE_ERR_UNSUPPORTED,
         "nobody knows what leaving out experts of `%s` costs; `edgemoe calibrate %s --text FILE --for-lossy` measures "
         "it",
         model.c_str(), model.c_str());
}

} // namespace emoe
