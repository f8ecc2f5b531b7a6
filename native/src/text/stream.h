// Turns token bytes into text as it arrives: whole characters only, and never past a stop text. Pure.
#pragma once

#include <string>
#include <vector>

namespace emoe {

// Bytes in, valid UTF-8 out, as Python decodes with "replace": U+FFFD for each maximal part of a character that does
// not go on. What may still become a character is held back.
class Utf8 {
public:
    std::string feed(const char *bytes, size_t n);
    std::string finish();

private:
    void begin(unsigned char byte, std::string *out);

    std::string held_;      // of a character: its first bytes
    size_t want_ = 0;       // bytes that it has in all
    unsigned char low_ = 0; // the range of its next byte
    unsigned char high_ = 0;
};

class TextStream {
public:
    explicit TextStream(std::vector<std::string> stop = {}) : stop_(std::move(stop)) {}
    // The text that is certain after one more piece, empty if none is.
    std::string feed(const char *bytes, size_t n) { return release(utf8_.feed(bytes, n), false); }
    // What was held back because a stop text might have begun.
    std::string finish() { return release(utf8_.finish(), true); }
    // A stop text was found: what came before it has been returned, it and what follows are dropped.
    bool stopped() const { return stopped_; }

private:
    std::string release(const std::string &text, bool final);

    Utf8 utf8_;
    std::vector<std::string> stop_;
    std::string held_;
    bool stopped_ = false;
};

} // namespace emoe
