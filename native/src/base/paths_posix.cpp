#include "base/paths.h"

#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <memory>
#include <unistd.h>

namespace emoe {

std::filesystem::path path_of(const std::string &utf8) { return utf8; }
std::string text_of(const std::filesystem::path &path) { return path.string(); }

std::string real_path(const std::string &path) {
    char *real = realpath(path.c_str(), nullptr);
    std::string const name = real ? real : path;
    free(real);
    return name;
}

FILE *open_stream(const std::string &path, const char *mode) { return fopen(path.c_str(), mode); }

bool sync_stream(FILE *stream) { return fflush(stream) == 0 && fsync(fileno(stream)) == 0; }

std::vector<std::filesystem::path> entries_of(const std::filesystem::path &folder) {
    std::vector<std::filesystem::path> found;
    struct Close {
        void operator()(DIR *open) const { closedir(open); }
    };
    std::unique_ptr<DIR, Close> const open(opendir(folder.c_str()));
    while (dirent const *entry = open ? readdir(open.get()) : nullptr)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            found.push_back(folder / entry->d_name);
    return found;
}

uint32_t process_id() { return static_cast<uint32_t>(getpid()); }

} // namespace emoe
