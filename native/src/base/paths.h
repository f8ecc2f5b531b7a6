// Names of files: UTF-8 in all of our interfaces, and what the system is asked about them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

namespace emoe {

std::filesystem::path path_of(const std::string &utf8);
std::string text_of(const std::filesystem::path &path);

std::string real_path(const std::string &path);               // path itself when it has none
FILE *open_stream(const std::string &path, const char *mode); // fopen
bool sync_stream(FILE *stream);                               // flushed, and on the disk
// What is in a folder, nothing where it cannot be read. libstdc++'s own walk ends the process where memory lacks.
std::vector<std::filesystem::path> entries_of(const std::filesystem::path &folder);
uint32_t process_id();

} // namespace emoe
