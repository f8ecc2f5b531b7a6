#include "base/paths.h"

#include <cstdlib>
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

uint32_t process_id() { return static_cast<uint32_t>(getpid()); }

} // namespace emoe
