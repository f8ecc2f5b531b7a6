#include "pipeline/trace.h"

#include "base/error.h"
#include "base/paths.h"

#include <cerrno>

namespace emoe {

namespace {
enum Kind : uint8_t { k_batch = 1, k_visit = 2, k_read = 3, k_stall = 4, k_product = 5 };
} // namespace

Trace::Trace(const std::string &path, const std::string &header) : path_(path), file_(open_stream(path, "wb")) {
    if (!file_) fail(EMOE_ERR_IO, "cannot write `%s`: %s", path.c_str(), os_message(errno).c_str());
    setvbuf(file_, nullptr, _IOFBF, 1 << 18);
    fwrite("EMOETRC1", 8, 1, file_);
    put(static_cast<uint32_t>(header.size()));
    fwrite(header.data(), header.size(), 1, file_);
}

Trace::~Trace() {
    if (file_) fclose(file_);
}

void Trace::close() {
    if (!file_) return;
    bool const bad = fflush(file_) != 0 || ferror(file_) != 0;
    int const reason = errno;
    fclose(file_);
    file_ = nullptr;
    if (bad) fail(EMOE_ERR_IO, "cannot write `%s`: %s", path_.c_str(), os_message(reason).c_str());
}

void Trace::batch(uint32_t n_token, uint64_t begin_ns, uint64_t end_ns, bool reads_ahead) {
    put(k_batch);
    put(n_token);
    put(begin_ns);
    put(end_ns);
    put(static_cast<uint8_t>(reads_ahead));
}

void Trace::visit(uint32_t layer, uint32_t n_token, uint64_t now_ns, size_t n_use) {
    put(k_visit);
    put(static_cast<uint16_t>(layer));
    put(n_token);
    put(now_ns);
    put(static_cast<uint16_t>(n_use));
}

void Trace::use(uint16_t expert, uint32_t n_row, float weight, TraceState state) {
    put(expert);
    put(n_row);
    put(weight);
    put(state);
}

void Trace::read(ExpertIndex expert, uint8_t matrices, bool speculative, uint32_t bytes, uint64_t asked_ns,
                 uint64_t ended_ns) {
    put(k_read);
    put(expert);
    put(matrices);
    put(static_cast<uint8_t>(speculative));
    put(bytes);
    put(asked_ns);
    put(ended_ns);
}

void Trace::stall(uint32_t layer, uint32_t matrix, uint64_t begin_ns, uint64_t end_ns) {
    put(k_stall);
    put(static_cast<uint16_t>(layer));
    put(static_cast<uint8_t>(matrix));
    put(begin_ns);
    put(end_ns);
}

void Trace::product(uint32_t layer, uint32_t matrix, uint64_t begin_ns, uint64_t end_ns) {
    put(k_product);
    put(static_cast<uint16_t>(layer));
    put(static_cast<uint8_t>(matrix));
    put(begin_ns);
    put(end_ns);
}

} // namespace emoe
