// When threads spin and when they sleep, by what the system says of their delays.
#include "base/spin.h"

#include "check.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

using namespace emoe;

namespace {

constexpr uint64_t k_ms = 1000000;

constexpr uint32_t k_n_threads = 4, k_n_cpu = 8;

// 50 ms in which each thread waited delayed_ms for a CPU.
bool next(SpinRule &rule, uint64_t delayed_ms, double n_other = 0.1) {
    return rule.next(CpuLook{50 * k_ms, delayed_ms * k_ms * k_n_threads, n_other});
}

// Looks until the rule says otherwise; how many.
uint32_t looks(SpinRule &rule, uint64_t delayed_ms, bool until) {
    uint32_t n = 1;
    while (next(rule, delayed_ms) != until && n < 10000) n++;
    return n;
}

void begins_spinning_and_goes_on_where_there_is_a_cpu_for_each_thread() {
    SpinRule rule(k_n_threads, k_n_cpu);
    CHECK(!rule.sleeps());
    for (int i = 0; i < 100; i++) CHECK(!next(rule, 2, 4));
    CHECK(next(rule, 5, 5));
    for (int i = 0; i < 100; i++) CHECK(next(rule, 0, 5));
    CHECK(!next(rule, 25, 4)); // sleeping threads are delayed by waking: that says nothing
}

void sleeps_while_its_threads_wait_for_cpus_longer_each_time() {
    SpinRule rule(k_n_threads, k_n_cpu);
    next(rule, 0);
    uint32_t before = 0;
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(looks(rule, 5, true), 1u);
        uint32_t const asleep = looks(rule, 5, false);
        CHECK(asleep == (i == 0 ? 5u : 2 * before));
        before = asleep;
    }
    for (int i = 0; i < 5; i++) {
        looks(rule, 5, true);
        before = looks(rule, 5, false);
    }
    CHECK_EQ(before, 1200u); // a minute, never longer
}

void forgets_a_mistake_after_a_calm_time() {
    SpinRule rule(k_n_threads, k_n_cpu);
    next(rule, 0);
    for (int i = 0; i < 4; i++) {
        looks(rule, 5, true);
        looks(rule, 5, false);
    }
    for (int i = 0; i < 60; i++) CHECK(!next(rule, 0));
    looks(rule, 5, true);
    CHECK_EQ(looks(rule, 0, false), 5u);
}

// Twice as many threads as CPUs, all of them computing: they wait for each other's CPUs.
void the_system_tells_of_delays() {
    CpuWatch cpus;
    if (!cpus.knows()) {
        printf("this system does not tell how long threads wait for a CPU: not tested\n");
        return;
    }
    std::atomic<bool> ends{false};
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 2 * std::thread::hardware_concurrency(); i++)
        threads.emplace_back([&] {
            while (!ends.load(std::memory_order_relaxed)) {
            }
        });
    uint64_t delayed_ns = 0;
    for (int i = 0; i < 500 && delayed_ns < 20 * k_ms; i++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        CpuLook const look = cpus.look();
        CHECK(look.n_ns > 0 && look.n_other >= 0 && look.n_other <= std::thread::hardware_concurrency() + 1);
        delayed_ns += look.delayed_ns;
    }
    ends.store(true);
    for (std::thread &t : threads) t.join();
    CHECK(delayed_ns >= 20 * k_ms);
}

} // namespace

int main() {
    begins_spinning_and_goes_on_where_there_is_a_cpu_for_each_thread();
    sleeps_while_its_threads_wait_for_cpus_longer_each_time();
    forgets_a_mistake_after_a_calm_time();
    the_system_tells_of_delays();
    return g_failures;
}
