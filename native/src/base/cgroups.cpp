#include "base/cgroups.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <system_error>

namespace fs = std::filesystem;

namespace emoe {

namespace {

constexpr uint64_t k_unlimited = uint64_t{1} << 60; // version 1 writes "none" as a number near 2^63

// A file that holds one number; nothing when it is absent in this version of cgroups, or says "max".
std::optional<uint64_t> number(const fs::path &path) {
    std::ifstream in(path);
    uint64_t value = 0;
    if (!(in >> value)) return std::nullopt;
    return value;
}

// The value of a line "name value"; 0 when there is none.
uint64_t statistic(const fs::path &path, const std::string &name) {
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);)
        if (line.compare(0, name.size() + 1, name + " ") == 0) return strtoull(line.c_str() + name.size(), nullptr, 10);
    return 0;
}

std::vector<std::string> words(const std::string &line) {
    std::istringstream in(line);
    std::vector<std::string> found;
    for (std::string word; in >> word;) found.push_back(word);
    return found;
}

bool has_part(const std::string &list, const std::string &part) {
    std::istringstream in(list);
    for (std::string each; std::getline(in, each, ',');)
        if (each == part) return true;
    return false;
}

// By controller ("memory" for version 1, "" for version 2): this process's path inside the hierarchy.
std::map<std::string, std::string> own_paths(const std::string &root) {
    std::map<std::string, std::string> paths;
    std::ifstream in(root + "/proc/self/cgroup");
    for (std::string line; std::getline(in, line);) {
        size_t const first = line.find(':');
        size_t const second = first == std::string::npos ? first : line.find(':', first + 1);
        if (second == std::string::npos) continue;
        std::string const controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
        if (controllers.empty()) paths[""] = path;
        if (has_part(controllers, "memory")) paths["memory"] = path;
    }
    return paths;
}

// The controller of a mounted hierarchy, as in own_paths; nothing when it is none of memory.
std::optional<std::string> controller_of(const std::vector<std::string> &after) {
    if (after.empty()) return std::nullopt;
    if (after[0] == "cgroup2") return "";
    if (after[0] == "cgroup" && has_part(after.back(), "memory")) return "memory";
    return std::nullopt;
}

// Folders of this process's memory cgroup and of its parents, as far as they are visible.
std::vector<fs::path> folders(const std::string &root) {
    std::vector<fs::path> found;
    std::map<std::string, std::string> const paths = own_paths(root);
    std::ifstream in(root + "/proc/self/mountinfo");
    for (std::string line; std::getline(in, line);) {
        size_t const dash = line.find(" - ");
        if (dash == std::string::npos) continue;
        std::vector<std::string> const before = words(line.substr(0, dash));
        std::optional<std::string> const controller = controller_of(words(line.substr(dash + 3)));
        if (before.size() < 5 || !controller || paths.count(*controller) == 0) continue;
        // A container may see a path from outside its own mount: what is visible then is the mount itself.
        fs::path const inside = fs::path(paths.at(*controller)).lexically_relative(before[3]);
        fs::path const top = root + before[4];
        bool const outside = inside.empty() || *inside.begin() == "..";
        fs::path folder = outside || inside == "." ? top : (top / inside).lexically_normal();
        for (std::error_code ignored;; folder = folder.parent_path()) {
            if (fs::is_directory(folder, ignored)) found.push_back(folder);
            if (folder == top || folder == folder.parent_path()) break;
        }
    }
    return found;
}

} // namespace

std::vector<CgroupLimit> cgroup_limits(const std::string &root) {
    static constexpr struct {
        const char *limit, *used, *inactive;
    } k_versions[] = {{"memory.max", "memory.current", "inactive_file"},
                      {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"}};
    std::vector<CgroupLimit> limits;
    for (fs::path const &folder : folders(root))
        for (auto const &names : k_versions) {
            std::optional<uint64_t> const limit = number(folder / names.limit);
            if (!limit || *limit >= k_unlimited) continue;
            uint64_t const used = number(folder / names.used).value_or(0);
            uint64_t const idle = statistic(folder / "memory.stat", names.inactive);
            limits.push_back({*limit, used - std::min(used, idle)});
        }
    return limits;
}

} // namespace emoe
