// Every n-th allocation of the library fails: the call says so, the process lives, and the next call is right.
//
//   allocation_test MODEL.gguf [EVERY [ACTIVITY]...]      EVERY: of so many places one is tried (1: all)
//
// Each place is tried in a child of its own, which a fault that ends the process ends alone. Only what libedgemoe asks
// for fails, itself or through the C++ library: what llama.cpp does without memory is not ours to say.
#include <edgemoe.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include <execinfo.h>
#include <link.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

struct Range {
    uintptr_t begin = 0, end = 0;
    bool has(const void *p) const {
        auto const at = reinterpret_cast<uintptr_t>(p);
        return begin <= at && at < end;
    }
};
Range g_ours, g_std, g_here;  // code of libedgemoe, of the C++ library, of this program
std::atomic<long> g_left{-1}; // our allocations until one fails; -1: none does
std::atomic<long> g_count{0}; // ours
std::atomic<bool> g_counts{false};

int find_code(dl_phdr_info *info, size_t, void *) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD || !(info->dlpi_phdr[i].p_flags & PF_X)) continue;
        uintptr_t const begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        Range const range = {begin, begin + info->dlpi_phdr[i].p_memsz};
        if (strstr(info->dlpi_name, "libedgemoe.")) g_ours = range;
        if (strstr(info->dlpi_name, "libstdc++.")) g_std = range;
        if (info->dlpi_name[0] == 0 && g_here.begin == 0) g_here = range;
    }
    return 0;
}

bool is_ours(const void *caller) {
    if (g_ours.has(caller)) return true;
    if (!g_std.has(caller)) return false;
    void *frames[12];
    int const n = backtrace(frames, 12);
    for (int i = 0; i < n; i++) {
        if (!g_std.has(frames[i]) && !g_here.has(frames[i])) return g_ours.has(frames[i]);
    }
    return false;
}

bool fails(const void *caller) {
    if (!g_counts.load(std::memory_order_relaxed) || !is_ours(caller)) return false;
    g_count++;
    return g_left.load() >= 0 && g_left.fetch_sub(1) == 0;
}

void *allocate(size_t bytes, size_t alignment, const void *caller) {
    void *p = nullptr;
    if (fails(caller)) return nullptr;
    if (alignment <= alignof(std::max_align_t)) return malloc(bytes ? bytes : 1);
    return posix_memalign(&p, alignment, bytes ? bytes : 1) == 0 ? p : nullptr;
}

void *allocate_or_throw(size_t bytes, size_t alignment, const void *caller) {
    if (void *p = allocate(bytes, alignment, caller)) return p;
    throw std::bad_alloc();
}

} // namespace

#define CALLER __builtin_return_address(0)
void *operator new(size_t n) { return allocate_or_throw(n, 1, CALLER); }
void *operator new[](size_t n) { return allocate_or_throw(n, 1, CALLER); }
void *operator new(size_t n, std::align_val_t a) { return allocate_or_throw(n, static_cast<size_t>(a), CALLER); }
void *operator new[](size_t n, std::align_val_t a) { return allocate_or_throw(n, static_cast<size_t>(a), CALLER); }
void *operator new(size_t n, const std::nothrow_t &) noexcept { return allocate(n, 1, CALLER); }
void *operator new[](size_t n, const std::nothrow_t &) noexcept { return allocate(n, 1, CALLER); }
void operator delete(void *p) noexcept { free(p); }
void operator delete[](void *p) noexcept { free(p); }
void operator delete(void *p, size_t) noexcept { free(p); }
void operator delete[](void *p, size_t) noexcept { free(p); }
void operator delete(void *p, std::align_val_t) noexcept { free(p); }
void operator delete[](void *p, std::align_val_t) noexcept { free(p); }
void operator delete(void *p, size_t, std::align_val_t) noexcept { free(p); }
void operator delete[](void *p, size_t, std::align_val_t) noexcept { free(p); }

namespace {

const char *g_model;
std::string g_folder;
emoe_error g_err;

template <typename T>
T zeros() {
    T t = {};
    t.struct_size = sizeof t;
    return t;
}

emoe_setup shaped() {
    auto s = zeros<emoe_setup>();
    s.n_ctx = 256;
    s.n_ubatch = 32;
    s.n_threads = 1; // two that spin on a busy machine take ten times as long
    s.memory = uint64_t{1} << 30;
    s.prefetch = EMOE_PREFETCH_ON;
    return s;
}

// What an activity finds, from its own words to the values of an answer: equal after each fault.
using Found = std::vector<float>;
struct Activity {
    const char *name;
    std::function<void()> begin;             // without faults
    std::function<emoe_status(Found *)> run; // with one; asked again without, and then it is right
};

emoe_model *g_opened;
emoe_engine *g_engine;
emoe_session *g_session;
emoe_text *g_text;

emoe_status open_model(Found *found) {
    emoe_model *model = nullptr;
    emoe_status const status = emoe_model_open(g_model, &model, &g_err);
    if (status != EMOE_OK) return status;
    auto info = zeros<emoe_model_info>();
    emoe_status const told = emoe_model_get_info(model, &info, &g_err);
    found->push_back(static_cast<float>(info.n_expert_total));
    emoe_model_close(model);
    return told;
}

void have_model() {
    if (emoe_model_open(g_model, &g_opened, &g_err) != EMOE_OK) abort();
}

emoe_status make_plan(Found *found) {
    auto plan = zeros<emoe_plan>();
    emoe_setup const setup = shaped();
    emoe_status const status = emoe_plan_make(g_opened, g_folder.c_str(), &setup, &plan, &g_err);
    if (status == EMOE_OK) found->push_back(static_cast<float>(plan.n_ctx));
    return status;
}

emoe_status open_engine(Found *found) {
    emoe_engine *engine = nullptr;
    emoe_setup const setup = shaped();
    emoe_status const status = emoe_engine_open(g_opened, nullptr, &setup, 0, &engine, &g_err);
    if (status != EMOE_OK) return status;
    found->push_back(static_cast<float>(emoe_engine_n_ctx(engine)));
    emoe_engine_close(engine);
    return EMOE_OK;
}

void have_engine() {
    have_model();
    emoe_setup const setup = shaped();
    if (emoe_engine_open(g_opened, nullptr, &setup, 0, &g_engine, &g_err) != EMOE_OK) abort();
    g_text = emoe_engine_text(g_engine);
}

emoe_status decode(Found *found, uint32_t n, const std::function<emoe_status()> &then = {}) {
    std::vector<int32_t> tokens;
    for (uint32_t i = 0; i < n; i++) tokens.push_back(static_cast<int32_t>(3 + i * 7));
    g_counts = true;
    emoe_status const status = emoe_engine_decode(g_engine, tokens.data(), n, 0, &g_err);
    g_counts = false;
    if (status != EMOE_OK) return status;
    const float *logits = emoe_text_logits(g_text, 0);
    found->assign(logits, logits + 100);
    return then ? then() : emoe_engine_rewind(g_engine, 0, &g_err);
}

emoe_status resize(Found *found) {
    emoe_status const status = emoe_engine_set_cache_bytes(g_engine, uint64_t{1} << 40, &g_err);
    return status != EMOE_OK ? status : decode(found, 3);
}

emoe_status sample(Found *found) {
    auto constraint = zeros<emoe_constraint>();
    constraint.grammar = "root ::= [a-z]+";
    auto const params = zeros<emoe_sampler_params>();
    emoe_sampler *sampler = nullptr;
    emoe_status status = emoe_sampler_open(&params, &sampler, &g_err);
    if (status == EMOE_OK) status = emoe_sampler_constrain(sampler, g_text, &constraint, &g_err);
    int32_t token = -1;
    Found logits;
    if (status == EMOE_OK)
        status = decode(&logits, 3, [&] {
            g_counts = true;
            token = emoe_sampler_sample(sampler, g_text, 0); // which has no words for it
            g_counts = false;
            if (token < 0) snprintf(g_err.message, sizeof g_err.message, "no token was picked");
            emoe_status const back = emoe_engine_rewind(g_engine, 0, &g_err);
            return token < 0 ? EMOE_ERR_MEMORY : back;
        });
    emoe_sampler_close(sampler);
    if (status == EMOE_OK) found->push_back(static_cast<float>(token));
    return status;
}

emoe_status open_session(Found *found) {
    emoe_session *session = nullptr;
    emoe_setup const setup = shaped();
    emoe_status const status = emoe_session_open(g_model, g_folder.c_str(), &setup, &session, nullptr, &g_err);
    if (status != EMOE_OK) return status;
    found->push_back(1);
    emoe_session_close(session);
    return EMOE_OK;
}

void have_session() {
    emoe_setup const setup = shaped();
    if (emoe_session_open(g_model, g_folder.c_str(), &setup, &g_session, nullptr, &g_err) != EMOE_OK) abort();
}

emoe_status answer(Found *found) {
    auto params = zeros<emoe_answer_params>();
    params.max_tokens = 4;
    emoe_message const message = {"user", "hello"};
    emoe_status status = emoe_session_chat(g_session, &message, 1, "chatml", &params, &g_err);
    const char *text = nullptr;
    uint64_t n = 0;
    found->clear();
    do {
        if (status == EMOE_OK) status = emoe_session_next(g_session, &text, &n, &g_err);
        for (uint64_t i = 0; status == EMOE_OK && text && i < n; i++) found->push_back(text[i]);
    } while (status == EMOE_OK && text);
    return status;
}

emoe_status stream(Found *found) {
    const char *const stops[] = {"a long text that ends what is written"};
    uint64_t const bytes[] = {strlen(stops[0])};
    emoe_stream *s = nullptr;
    const char *text = nullptr;
    uint64_t n = 0;
    emoe_status status = emoe_stream_open(stops, bytes, 1, &s, &g_err);
    for (int i = 0; i < 20 && status == EMOE_OK; i++) {
        status = emoe_stream_feed(s, "a long text that begins", 23, &text, &n, &g_err);
        if (status == EMOE_OK) found->push_back(static_cast<float>(n));
    }
    emoe_stream_close(s);
    return status;
}

emoe_status policy(Found *found) {
    uint32_t const n_expert[] = {8, 8}, experts[] = {1, 5}, rows[] = {1, 1};
    float const weights[] = {0.5F, 0.5F};
    float badness[16];
    emoe_policy *p = nullptr;
    emoe_status status = emoe_policy_open(EMOE_POLICY_NEXT_USE, n_expert, 2, 2, &p, &g_err);
    for (uint32_t layer = 0; layer < 2 && status == EMOE_OK; layer++)
        status = emoe_policy_visit(p, layer, 1, experts, rows, weights, 2, &g_err);
    if (status == EMOE_OK) status = emoe_policy_badness(p, badness, 16, &g_err);
    if (status == EMOE_OK) found->assign(badness, badness + 16);
    emoe_policy_close(p);
    return status;
}

const std::vector<Activity> &activities() {
    auto const nothing = [] {};
    static const std::vector<Activity> all = {
        {"open a model", nothing, open_model},
        {"plan", have_model, make_plan},
        {"open an engine", have_model, open_engine},
        {"decode", have_engine, [](Found *f) { return decode(f, 1); }},
        {"prefill", have_engine, [](Found *f) { return decode(f, 24); }},
        {"resize the cache", have_engine, resize},
        {"sample with a grammar", have_engine, sample},
        {"open a session", nothing, open_session},
        {"answer", have_session, answer},
        {"stream of text", nothing, stream},
        {"policy", nothing, policy},
    };
    return all;
}

struct Outcome {
    bool alive = false, met = false, failed = false, right = false;
    char said[200] = {};
};

// What a child with a fault at place n sends, one field after the other.
Outcome with_fault(const Activity &activity, long n) {
    int ends[2];
    if (pipe(ends) != 0) abort();
    fflush(nullptr);
    pid_t const pid = fork();
    if (pid == 0) {
        alarm(60);
        Outcome o;
        activity.begin();
        Found reference, found;
        if (activity.run(&reference) != EMOE_OK) _exit(3);
        found.reserve(1000);
        g_err.message[0] = 0;
        g_left = n;
        g_counts = true;
        emoe_status const status = activity.run(&found);
        g_counts = false;
        o.met = g_left < 0;
        g_left = -1;
        o.failed = status != EMOE_OK;
        snprintf(o.said, sizeof o.said, "%s", g_err.message);
        bool const wrong = !o.failed && found != reference;
        found.clear();
        bool const in_words = !o.failed || (g_err.message[0] != 0 && !strchr(g_err.message, '\n'));
        bool const again = activity.run(&found) == EMOE_OK;
        o.right = !wrong && in_words && again && found == reference;
        if (!o.right)
            snprintf(o.said, sizeof o.said, "%s%s%s",
                     wrong      ? "another answer"
                     : in_words ? "then: "
                                : "no words",
                     again ? "" : g_err.message, again && found != reference ? "another answer" : "");
        o.alive = true;
        if (write(ends[1], &o, sizeof o) != sizeof o) _exit(4);
        _exit(0);
    }
    close(ends[1]);
    Outcome o;
    if (read(ends[0], &o, sizeof o) != sizeof o) o = Outcome{};
    close(ends[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    if (!o.alive) snprintf(o.said, sizeof o.said, "ended with %d", status);
    return o;
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 2) return 1;
    g_model = argv[1];
    long const every = argc > 2 ? atol(argv[2]) : 1;
    std::vector<std::string> const only(argv + std::min(argc, 3), argv + argc);
    char folder[] = "/tmp/emoe-allocation-XXXXXX";
    if (!mkdtemp(folder)) return 1;
    g_folder = folder;
    setenv("GGML_NO_BACKTRACE", "1", 1);
    void *frames[1];
    (void)backtrace(frames, 1); // loads what it needs, now
    dl_iterate_phdr(find_code, nullptr);
    if (g_ours.begin == 0) return 1;
    int n_wrong = 0;
    for (Activity const &activity : activities()) {
        if (!only.empty() && std::find(only.begin(), only.end(), activity.name) == only.end()) continue;
        long n_place = 0, n_error = 0, n_borne = 0, n_bad = 0, n = 0;
        for (;; n += every) {
            Outcome const o = with_fault(activity, n);
            if (o.alive && !o.met) break;
            n_place++;
            n_error += o.failed ? 1 : 0;
            n_borne += o.alive && !o.failed ? 1 : 0;
            if (o.right) continue;
            if (++n_bad <= 5) fprintf(stderr, "%s, allocation %ld: %s\n", activity.name, n, o.said);
            if (n_bad > 200) break;
        }
        printf("%-22s %6ld places %6ld errors %4ld borne %4ld wrong\n", activity.name, n_place, n_error, n_borne,
               n_bad);
        n_wrong += static_cast<int>(n_bad);
    }
    return n_wrong != 0;
}
