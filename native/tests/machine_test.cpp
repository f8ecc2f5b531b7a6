// What the system allows: cgroups of both versions in folders that stand for /, and the machine around this process.
#include "base/machine.h"

#include "base/cgroups.h"
#include "base/paths.h"
#include "check.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <vector>

namespace fs = std::filesystem;
using namespace emoe;

static constexpr uint64_t k_mib = uint64_t{1} << 20;
static constexpr uint64_t k_gib = uint64_t{1} << 30;

static const char *const k_v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
static const char *const k_v1 = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                                "32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";

using Files = std::map<std::string, std::string>;

// A folder with a /proc and a /sys of 16 GiB of RAM, 12 of them available; gone with the object.
class Root {
public:
    Root(const std::string &cgroup, const std::string &mounts, Files files) {
        static int n = 0;
        path_ =
            fs::temp_directory_path() / ("emoe-machine-" + std::to_string(process_id()) + "-" + std::to_string(n++));
        files.emplace("proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:   12582912 kB\nHugePages_Total: 0\n");
        files.emplace("proc/self/cgroup", cgroup);
        files.emplace("proc/self/mountinfo", mounts);
        for (auto const &[file, text] : files) {
            fs::path const at = path_ / file;
            fs::create_directories(at.parent_path());
            std::ofstream(at) << text;
        }
    }
    ~Root() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    Root(const Root &) = delete;
    Root &operator=(const Root &) = delete;

    std::vector<CgroupLimit> limits() const { return cgroup_limits(path_.string()); }
    std::string path() const { return path_.string(); }
    Machine machine() const { return emoe::machine(path_.string()); }
    uint64_t cgroup_limit_bytes() const { return emoe::cgroup_limit_bytes(path_.string()); }

private:
    fs::path path_;
};

static std::string digits(uint64_t n) { return std::to_string(n) + "\n"; }

static void without_limits_it_is_the_machine() {
    Root const root("0::/user\n", k_v2, {{"sys/fs/cgroup/user/memory.max", "max\n"}});
    CHECK(root.limits().empty());
    CHECK_EQ(root.cgroup_limit_bytes(), 0u);
    Machine const m = root.machine();
#if defined(__linux__)
    CHECK_EQ(m.total_bytes, 16 * k_gib);
    CHECK_EQ(m.limit_bytes, 16 * k_gib);
    CHECK_EQ(m.available_bytes, 12 * k_gib);
#endif
    CHECK(m.n_core >= 1);
}

#if defined(__linux__)
static std::string of_cpu(int cpu, const char *file) {
    return "sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/" + file;
}

// A slow core makes the fast ones wait at every barrier.
static void of_two_kinds_of_cores_the_fast_ones_count() {
    std::vector<uint32_t> cpus(8);
    std::iota(cpus.begin(), cpus.end(), 0u);
    Root const plain("0::/\n", k_v2, {});
    CHECK_EQ(physical_cores(cpus, plain.path()), 8u);
    Files laptop{{"sys/devices/cpu_core/cpus", "0-3\n"}, {"sys/devices/cpu_atom/cpus", "4-7\n"}};
    for (int i = 0; i < 4; i++) laptop.emplace(of_cpu(i, "topology/thread_siblings_list"), i < 2 ? "0-1\n" : "2-3\n");
    Root const hybrid("0::/\n", k_v2, laptop);
    CHECK_EQ(physical_cores(cpus, hybrid.path()), 2u);
    CHECK_EQ(physical_cores({4, 5, 6}, hybrid.path()), 3u); // where it may run on the slow ones alone
    Files phone;
    for (int i = 0; i < 8; i++) phone.emplace(of_cpu(i, "cpu_capacity"), i < 3 ? "325\n" : i < 7 ? "830\n" : "1024\n");
    CHECK_EQ(physical_cores(cpus, Root("0::/\n", k_v2, phone).path()), 5u);
}
#endif

static void the_tightest_parent_of_a_version_2_cgroup_counts() {
    Root const root("0::/a/b\n", k_v2,
                    {{"sys/fs/cgroup/a/memory.max", digits(2 * k_gib)},
                     {"sys/fs/cgroup/a/memory.current", digits(k_gib)},
                     {"sys/fs/cgroup/a/memory.stat", "anon 5\nactive_file 7\ninactive_file " + digits(256 * k_mib)},
                     {"sys/fs/cgroup/a/b/memory.max", digits(4 * k_gib)},
                     {"sys/fs/cgroup/a/b/memory.current", "0\n"}});
    CHECK_EQ(root.limits().size(), 2u);
#if defined(__linux__)
    CHECK_EQ(root.machine().limit_bytes, 2 * k_gib);
    CHECK_EQ(root.cgroup_limit_bytes(), 2 * k_gib);
    CHECK_EQ(root.machine().available_bytes, k_gib + 256 * k_mib); // page cache that nobody uses can be had
#endif
}

static void a_version_1_cgroup_counts_and_its_number_for_none_does_not() {
    Root const root("9:cpu:/\n4:memory:/limited\n0::/\n", k_v1,
                    {{"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
                     {"sys/fs/cgroup/memory/limited/memory.limit_in_bytes", digits(900 * k_mib)},
                     {"sys/fs/cgroup/memory/limited/memory.usage_in_bytes", digits(100 * k_mib)},
                     {"sys/fs/cgroup/memory/limited/memory.stat", "total_inactive_file " + digits(60 * k_mib)}});
    std::vector<CgroupLimit> const limits = root.limits();
    CHECK_EQ(limits.size(), 1u);
    if (limits.empty()) return;
    CHECK_EQ(limits[0].limit_bytes, 900 * k_mib);
    CHECK_EQ(limits[0].used_bytes, 40 * k_mib);
}

static void controllers_that_share_a_version_1_hierarchy_are_told_apart() {
    Root const root("5:memory,hugetlb:/x\n6:cpu,cpuacct:/y\n",
                    "31 23 0:27 / /sys/fs/cgroup/mh rw - cgroup cgroup rw,hugetlb,memory\n",
                    {{"sys/fs/cgroup/mh/x/memory.limit_in_bytes", digits(k_gib)}});
    CHECK_EQ(root.limits().size(), 1u);
}

static void in_a_container_the_mount_is_the_cgroup() {
    std::string const mount = "31 23 0:27 /docker/c0ffee /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
    for (const char *cgroup : {"4:memory:/docker/c0ffee\n", "4:memory:/elsewhere\n", "4:memory:/docker\n"}) {
        Root const root(cgroup, mount, {{"sys/fs/cgroup/memory/memory.limit_in_bytes", digits(3 * k_gib)}});
        std::vector<CgroupLimit> const limits = root.limits();
        CHECK_EQ(limits.size(), 1u);
        if (!limits.empty()) CHECK_EQ(limits[0].limit_bytes, 3 * k_gib);
    }
}

static void a_path_above_the_mount_does_not_lead_out_of_it() {
    Root const root("0::/../../sibling\n", k_v2,
                    {{"sys/fs/cgroup/memory.max", digits(5 * k_gib)},
                     {"sys/fs/memory.max", digits(k_mib)},
                     {"sys/memory.max", digits(k_mib)}});
    std::vector<CgroupLimit> const limits = root.limits();
    CHECK_EQ(limits.size(), 1u);
    if (!limits.empty()) CHECK_EQ(limits[0].limit_bytes, 5 * k_gib);
}

static void what_cannot_be_read_limits_nothing() {
    CHECK(cgroup_limits("/nonexistent").empty());
    for (const char *text : {"", "max\n", "many\n", "-1\n", "99999999999999999999999999\n", "18446744073709551615\n"}) {
        Root const root("0::/a\n", k_v2, {{"sys/fs/cgroup/a/memory.max", text}});
        CHECK(root.limits().empty());
    }
    CHECK(Root("0::/a\n", "", {{"sys/fs/cgroup/a/memory.max", "1\n"}}).limits().empty()); // no mount is visible
    CHECK(Root("", k_v2, {{"sys/fs/cgroup/memory.max", "1\n"}}).limits().empty());        // nor where it is in it
    CHECK(Root("nonsense\n::\n:\n", "nonsense\n - \n1 2 3 - cgroup2\n", {}).limits().empty());
}

static void a_limit_without_usage_is_all_there_to_be_had() {
    Root const root("0::/a\n", k_v2, {{"sys/fs/cgroup/a/memory.max", digits(k_gib)}});
    CHECK_EQ(root.limits().size(), 1u);
#if defined(__linux__)
    CHECK_EQ(root.machine().available_bytes, k_gib);
#endif
}

static void more_used_than_allowed_leaves_nothing() {
    Root const root("0::/a\n", k_v2,
                    {{"sys/fs/cgroup/a/memory.max", digits(k_mib)},
                     {"sys/fs/cgroup/a/memory.current", digits(2 * k_mib)},
                     {"sys/fs/cgroup/a/memory.stat", "inactive_file nothing\n"}});
    CHECK_EQ(root.machine().available_bytes, 0u);
}

static void a_machine_that_says_nothing_has_zeros() {
    Machine const m = machine("/nonexistent");
#if defined(__linux__)
    CHECK_EQ(m.total_bytes, 0u);
    CHECK_EQ(m.limit_bytes, 0u);
    CHECK_EQ(m.available_bytes, 0u);
#endif
    CHECK(m.n_core >= 1); // this is asked of the processor itself
}

static void a_process_knows_its_own_memory() {
    ProcessMemory const before = process_memory();
    std::vector<char> const block(64 * k_mib, 'x');
    ProcessMemory const after = process_memory();
    CHECK(block[block.size() / 2] == 'x');
    if (after.rss_bytes == 0) return; // a system that does not say
    CHECK(after.rss_bytes > before.rss_bytes + 32 * k_mib);
    CHECK(after.peak_bytes >= after.rss_bytes);
    CHECK(after.rss_bytes + k_mib >= after.anon_bytes + after.file_bytes);
    CHECK(rss_bytes() > before.rss_bytes + 32 * k_mib);
    Machine const m = machine();
    CHECK(m.limit_bytes <= m.total_bytes);
    CHECK(m.available_bytes <= m.limit_bytes);
}

int main() {
    without_limits_it_is_the_machine();
#if defined(__linux__)
    of_two_kinds_of_cores_the_fast_ones_count();
#endif
    the_tightest_parent_of_a_version_2_cgroup_counts();
    a_version_1_cgroup_counts_and_its_number_for_none_does_not();
    controllers_that_share_a_version_1_hierarchy_are_told_apart();
    in_a_container_the_mount_is_the_cgroup();
    a_path_above_the_mount_does_not_lead_out_of_it();
    what_cannot_be_read_limits_nothing();
    a_limit_without_usage_is_all_there_to_be_had();
    more_used_than_allowed_leaves_nothing();
    a_machine_that_says_nothing_has_zeros();
    a_process_knows_its_own_memory();
    return g_failures;
}
