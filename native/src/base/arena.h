// A reserved range of anonymous memory whose pages are committed on first touch and can be given back.
//
// The address range is fixed for life, so pointers into it stay valid across shrinking and growing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emoe {

class Arena {
public:
    Arena() = default;
    explicit Arena(size_t bytes); // throws EMOE_ERR_MEMORY when the address space is not to be had
    ~Arena();
    Arena(Arena &&other) noexcept;
    Arena &operator=(Arena &&other) noexcept;
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;

    uint8_t *data() const { return data_; }
    size_t size() const { return size_; }

    // Gives the whole pages inside [begin, end) back to the system. Their content is lost.
    void release(size_t begin, size_t end) const;

private:
    uint8_t *data_ = nullptr;
    size_t size_ = 0;
};

} // namespace emoe
