#include "text/stream.h"

#include <algorithm>

namespace emoe {

namespace {

constexpr const char *k_replacement = "\xEF\xBF\xBD";

// Length of the longest end of text that begins stop, and is not the whole of it.
size_t overlap(const std::string &text, const std::string &stop) {
    for (size_t n = std::min(text.size(), stop.size() - 1); n > 0; n--)
        if (text.compare(text.size() - n, n, stop, 0, n) == 0) return n;
    return 0;
}

} // namespace

// First bytes and the range of the second, Unicode's table 3-7: no overlong forms, no surrogates, at most U+10FFFF.
void Utf8::begin(unsigned char b, std::string *out) {
    if (b < 0x80) {
        out->push_back(static_cast<char>(b));
        return;
    }
    if (b < 0xC2 || b > 0xF4) {
        out->append(k_replacement);
        return;
    }
    held_.assign(1, static_cast<char>(b));
    want_ = b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
    low_ = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80;
    high_ = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
}

std::string Utf8::feed(const char *bytes, size_t n) {
    std::string out;
    for (size_t i = 0; i < n; i++) {
        auto const b = static_cast<unsigned char>(bytes[i]);
        if (held_.empty()) {
            begin(b, &out);
            continue;
        }
        if (b < low_ || b > high_) { // the character does not go on: this byte begins something else
            out.append(k_replacement);
            held_.clear();
            begin(b, &out);
            continue;
        }
        held_.push_back(static_cast<char>(b));
        low_ = 0x80;
        high_ = 0xBF;
        if (held_.size() == want_) {
            out += held_;
            held_.clear();
        }
    }
    return out;
}

std::string Utf8::finish() {
    std::string const out = held_.empty() ? "" : k_replacement;
    held_.clear();
    return out;
}

std::string TextStream::release(const std::string &more, bool final) {
    if (stopped_) return "";
    std::string text = held_ + more;
    held_.clear();
    size_t at = std::string::npos;
    for (std::string const &s : stop_) at = std::min(at, text.find(s));
    if (at != std::string::npos) {
        stopped_ = true;
        return text.substr(0, at);
    }
    size_t keep = 0;
    if (!final)
        for (std::string const &s : stop_) keep = std::max(keep, overlap(text, s));
    held_ = text.substr(text.size() - keep);
    text.resize(text.size() - keep);
    return text;
}

} // namespace emoe
