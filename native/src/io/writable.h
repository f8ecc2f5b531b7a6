// A file that is written at given places, locked against other processes, lengthened and shortened. Paths are UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emoe {

// Whether a file can be in memory, with a name by which this process opens it.
#ifdef __linux__
constexpr bool k_files_in_memory = true;
#else
constexpr bool k_files_in_memory = false;
#endif

class WritableFile {
public:
    // One that exists. Throws EMOE_ERR_IO.
    explicit WritableFile(const std::string &path);
    // A new one, with a name of its own beside `path`: two may write the same file at once, in one process or in two. It
    // is removed unless it is published. Throws EMOE_ERR_IO.
    static WritableFile beside(const std::string &path);
    // Throws EMOE_ERR_IO, EMOE_ERR_UNSUPPORTED where there is none (k_files_in_memory).
    static WritableFile in_memory(const std::string &label);
    ~WritableFile();
    WritableFile(WritableFile &&other) noexcept;
    WritableFile &operator=(WritableFile &&other) = delete;
    WritableFile(const WritableFile &) = delete;
    WritableFile &operator=(const WritableFile &) = delete;

    const std::string &path() const { return path_; } // that opens it, in this process

    void write(const void *data, size_t n, uint64_t offset) const; // all of it. Throws EMOE_ERR_IO.
    void sync() const;                                             // on the disk. Throws EMOE_ERR_IO.
    void publish();                                                // gives it its name. Throws EMOE_ERR_IO.
    void lock() const;                                             // waits for it; as long as this object lives
    // What is new is zeros, and takes no room where the file system can do that. Throws EMOE_ERR_IO.
    void resize(uint64_t bytes) const;
    void drop_pages() const; // of the page cache

private:
    WritableFile() = default;
    const std::string &name() const { return final_.empty() ? path_ : final_; } // for messages

    std::string path_;
    std::string final_;    // the name that it will have
    intptr_t handle_ = -1; // the system's
};

} // namespace emoe
