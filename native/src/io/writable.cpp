// What is the same on every system; the rest is writable_posix.cpp and writable_windows.cpp.
#include "io/writable.h"

#include <utility>

namespace emoe {

WritableFile::WritableFile(WritableFile &&other) noexcept
    : path_(std::move(other.path_)), final_(std::exchange(other.final_, {})),
      handle_(std::exchange(other.handle_, -1)) {}

} // namespace emoe
