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
    // Throws EMOE_ERR_MEMORY when the address space is not to be had. huge: for what is read front to back and used
    // whole; small or passing buffers would round up to 2 MiB each.
    explicit Arena(size_t bytes, bool huge = true);
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

// Drops the whole pages inside a range that somebody allocated or mapped: anonymous content is lost, a file's is not.
void release_pages(void *begin, size_t bytes);

} // namespace emoe
