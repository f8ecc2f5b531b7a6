#include "store/notes.h"

#include "base/paths.h"

#include <cstdio>
#include <fstream>
#include <system_error>

namespace fs = std::filesystem;

namespace emoe {

namespace {

constexpr const char *k_version = "edgemoe notes 1";

// A path in one line: a line's end in it, and the sign that stands for it, are written in hex.
std::string in_a_line(const std::string &text) {
    std::string out;
    for (char const c : text) {
        char escaped[4];
        if (c == '\n' || c == '\r' || c == '%') {
            snprintf(escaped, sizeof escaped, "%%%02x", static_cast<unsigned char>(c));
            out += escaped;
        } else {
            out += c;
        }
    }
    return out;
}

std::string from_line(const std::string &line) {
    std::string out;
    for (size_t i = 0; i < line.size(); i++) {
        if (line[i] == '%' && i + 2 < line.size()) {
            out += static_cast<char>(strtol(line.substr(i + 1, 2).c_str(), nullptr, 16));
            i += 2;
        } else {
            out += line[i];
        }
    }
    return out;
}

bool take(const std::string &line, const std::string &key, std::string *value) {
    if (line.compare(0, key.size() + 1, key + " ") != 0) return false;
    *value = line.substr(key.size() + 1);
    return true;
}

void write_atomically(const fs::path &path, const std::string &text) {
    fs::path const temporary = path_of(text_of(path) + "." + std::to_string(process_id()) + ".tmp");
    std::error_code failed;
    bool written = false;
    if (FILE *f = open_stream(text_of(temporary), "wb")) {
        written = fwrite(text.data(), 1, text.size(), f) == text.size() && sync_stream(f);
        written = fclose(f) == 0 && written;
    }
    if (written) fs::rename(temporary, path, failed);
    if (!written || failed) fs::remove(temporary, failed);
}

} // namespace

Notes read_notes(const fs::path &path) {
    Notes notes;
    std::ifstream in(path, std::ios::binary);
    std::string line, source;
    if (!std::getline(in, line) || line != k_version) return notes;
    while (std::getline(in, line)) {
        size_t const colon = line.find(": ");
        if (take(line, "source", &source))
            notes.source = from_line(source);
        else if (!take(line, "library", &notes.library) && colon != std::string::npos)
            notes.sizes[line.substr(0, colon)] = line.substr(colon + 2);
    }
    return notes;
}

void write_notes(const fs::path &path, const Notes &notes) {
    std::string text =
        std::string(k_version) + "\nsource " + in_a_line(notes.source) + "\nlibrary " + notes.library + "\n";
    for (auto const &[shape, sizes] : notes.sizes) text += shape + ": " + sizes + "\n";
    write_atomically(path, text);
}

} // namespace emoe
