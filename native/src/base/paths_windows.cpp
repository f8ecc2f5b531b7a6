#include "base/paths.h"
#include "base/windows.h"

#include <io.h>
#include <system_error>

namespace emoe {

std::filesystem::path path_of(const std::string &utf8) { return std::filesystem::u8path(utf8); }
std::string text_of(const std::filesystem::path &path) { return path.u8string(); }

std::string real_path(const std::string &path) {
    std::error_code failed;
    std::filesystem::path const found = std::filesystem::canonical(path_of(path), failed);
    return failed ? path : text_of(found);
}

FILE *open_stream(const std::string &path, const char *mode) { return _wfopen(wide(path).c_str(), wide(mode).c_str()); }

bool sync_stream(FILE *stream) { return fflush(stream) == 0 && _commit(_fileno(stream)) == 0; }

std::vector<std::filesystem::path> entries_of(const std::filesystem::path &folder) {
    std::vector<std::filesystem::path> found;
    std::error_code failed;
    std::filesystem::directory_iterator at(folder, failed);
    for (; !failed && at != std::filesystem::directory_iterator(); at.increment(failed)) found.push_back(at->path());
    return found;
}

uint32_t process_id() { return GetCurrentProcessId(); }

} // namespace emoe
