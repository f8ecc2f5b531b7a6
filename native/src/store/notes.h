// The notes beside a shell: lines of text, written whole or not at all.
//
//   edgemoe notes 1
//   source <absolute path of the model>
//   library <stamp of the library that measured>
//   <shape>: <sizes>                              one line a measured context
#pragma once

#include <filesystem>
#include <map>
#include <string>

namespace emoe {

struct Notes {
    std::string source;
    std::string library;
    std::map<std::string, std::string> sizes; // by shape
};

// Empty where there are none, or none that can be read.
Notes read_notes(const std::filesystem::path &path);
// A failure is ignored: it costs what was remembered.
void write_notes(const std::filesystem::path &path, const Notes &notes);

} // namespace emoe
