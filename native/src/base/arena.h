// A reserved range of anonymous memory whose pages are committed on first touch and can be given back; and pages of
// memory that is somebody else's.
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
    explicit Arena(size_t bytes, bool huge = true) : Arena(bytes, huge, true) {}
    // Address space alone: nothing of it may be touched before keep() names it.
    static Arena reserved(size_t bytes) { return {bytes, true, false}; }
    ~Arena();
    Arena(Arena &&other) noexcept;
    Arena &operator=(Arena &&other) noexcept;
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;

    uint8_t *data() const { return data_; }
    size_t size() const { return size_; }

    // The first bytes may be used from now on, and keep their content; the whole pages after them go back to the system.
    // Throws EMOE_ERR_MEMORY where a system counts what may be used and has no more of it.
    void keep(size_t bytes) const;
    // All whole pages go back to the system. Their content is lost; they may be used again.
    void release() const;

private:
    Arena(size_t bytes, bool huge, bool usable);

    uint8_t *data_ = nullptr;
    size_t size_ = 0;
};

// Whole pages inside a range of anonymous memory that somebody else allocated: their content is lost.
void discard_pages(void *begin, size_t bytes);
// Whole pages inside a range of a mapped file: they are read again when they are used.
void drop_mapped_pages(void *begin, size_t bytes);

size_t page_size();
struct Pages {
    void *begin;
    size_t bytes;
};
Pages whole_pages(void *begin, size_t bytes); // inside a range

} // namespace emoe
