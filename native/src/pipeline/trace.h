// What happened, for replay and for looking at: routing, residency, reads, stalls and products, one record each.
//
// File: "EMOETRC1", u32 length, JSON header (geometry), then records: u8 kind, then its fields, little-endian, packed
// (docs/trace.md). A traced run is no benchmark: records are written as they come, through one buffer.
#pragma once

#include "cache/policy.h"

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

namespace emoe {

enum class TraceState : uint8_t { miss = 0, hit = 1, late = 2, streamed = 3 };

class Trace {
public:
    // Throws EMOE_ERR_IO. header: JSON.
    Trace(const std::string &path, const std::string &header);
    ~Trace();
    Trace(const Trace &) = delete;
    Trace &operator=(const Trace &) = delete;

    // Ends the file; throws EMOE_ERR_IO when some of it could not be written.
    void close();

    void batch(uint32_t n_token, uint64_t begin_ns, uint64_t end_ns, bool reads_ahead);
    void visit(uint32_t layer, uint32_t n_token, uint64_t now_ns, size_t n_use);
    void use(uint16_t expert, uint32_t n_row, float weight, TraceState state); // n_use of them follow a visit
    void read(ExpertIndex expert, uint8_t matrices, bool speculative, uint32_t bytes, uint64_t asked_ns,
              uint64_t ended_ns);
    void stall(uint32_t layer, uint32_t matrix, uint64_t begin_ns, uint64_t end_ns);
    void product(uint32_t layer, uint32_t matrix, uint64_t begin_ns, uint64_t end_ns);

private:
    template <class T>
    void put(T value) {
        fwrite(&value, sizeof value, 1, file_);
    }
    std::string path_;
    FILE *file_ = nullptr;
};

} // namespace emoe
