// Rows of tables, which stay in the model's files: only those that are asked for are read, past the page cache, and the
// ones used lately are kept.
//
// A table is a tensor that is only looked up by row (token embeddings, n-grams). One call of gather is one look-up, by one
// token or a batch: its rows are sorted, those that are near each other in the file are one read, a few reads are under
// way at once, and each row is read at most once.
#pragma once

#include "base/error.h"
#include "cache/rows.h"
#include "io/reader.h"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace emoe {

// Where a table is.
struct RowTable {
    uint16_t file;
    uint64_t offset;
    uint32_t row_bytes;
    uint64_t n_row;
};

class RowReader final : public ReadSink {
public:
    struct Params {
        uint64_t bytes = 0; // of memory: what reads land in, and the rows that are kept of all tables
        ReaderParams reader;
        FileAccess access = FileAccess::direct;
    };
    // Opens the files; reads nothing. Throws EMOE_ERR_IO, EMOE_ERR_MEMORY.
    RowReader(const std::vector<std::string> &paths, std::vector<RowTable> tables, const Params &params,
              Faults &faults);
    ~RowReader() override;

    // take(i, bytes) for each of the n rows, in the order in which they come. By one thread at a time. After a failure some
    // were not taken, and no read is under way.
    using Take = std::function<void(size_t i, const uint8_t *row)>;
    Failure gather(size_t table, const int32_t *rows, size_t n, const Take &take);

    // As Streamer's.
    const File *changed_file();
    void accept_files();
    bool same_as_files() const; // what is kept of them

    // Any thread. Rows of one call that are the same count once.
    uint64_t n_hit() const { return n_hit_; }
    uint64_t n_miss() const { return n_miss_; }
    uint64_t read_bytes() const { return reader_->read_bytes(); }

    void on_read(uint64_t tag, const std::string &error) override;

private:
    struct Wanted {
        uint32_t row;
        uint32_t index;
    };
    struct Group { // the same row, wanted by several
        size_t first, end;
    };
    struct Span { // of groups, one read
        size_t first, end;
        uint64_t offset;
        uint64_t bytes, need;
    };
    Failure sort(const RowTable &table, const int32_t *rows, size_t n);
    void plan_reads(const RowTable &table);
    bool begin_read(const RowTable &table, size_t span, uint32_t buffer);
    void finish_read(size_t table, const Span &span, const uint8_t *bytes, const Take &take);
    void give(const Group &group, const uint8_t *row, const Take &take) const;

    std::vector<std::unique_ptr<File>> files_;
    std::vector<RowTable> const tables_;
    std::vector<RowCache> caches_; // by table
    uint64_t buffer_bytes_ = 0;
    Arena buffers_;               // of reads under way
    std::vector<uint32_t> free_;  // of them
    std::vector<size_t> span_of_; // by buffer
    std::vector<Wanted> wanted_;  // of the call, sorted
    std::vector<Group> missing_;  // of wanted_
    std::vector<Span> spans_;     // of missing_
    uint64_t n_read_checked_ = 0; // by changed_file
    std::atomic<uint64_t> n_hit_{0}, n_miss_{0};

    std::mutex mutex_; // guards ended_
    std::condition_variable wake_;
    std::vector<Ended> ended_;       // tag: the buffer
    std::unique_ptr<Reader> reader_; // last: its threads end before what they touch
};

} // namespace emoe
