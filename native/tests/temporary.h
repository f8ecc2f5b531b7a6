// A file with some content and a name of its own, gone with the object.
#pragma once

#include "base/paths.h"

#include <cstdio>
#include <cstdlib>
#include <string>

class TemporaryFile {
public:
    explicit TemporaryFile(const std::string &content) {
        static int n = 0;
        path = "test-" + std::to_string(emoe::process_id()) + "-" + std::to_string(n++) + ".tmp";
        FILE *const file = emoe::open_stream(path, "wb");
        if (!file || fwrite(content.data(), 1, content.size(), file) != content.size()) abort();
        fclose(file);
    }
    ~TemporaryFile() { remove(path.c_str()); }
    TemporaryFile(const TemporaryFile &) = delete;
    TemporaryFile &operator=(const TemporaryFile &) = delete;

    std::string path;
};
