#include "pipeline/rows.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace emoe {

namespace {

constexpr uint64_t k_span = uint64_t{64} << 10; // of one read
constexpr uint64_t k_gap = uint64_t{16} << 10;  // between rows that are read together: less than a read costs

} // namespace

RowReader::RowReader(const std::vector<std::string> &paths, std::vector<RowTable> tables, const Params &params,
                     Faults &faults)
    : tables_(std::move(tables)), buffer_bytes_(k_span) {
    ReaderParams reader = params.reader;
    for (std::string const &path : paths) files_.push_back(std::make_unique<File>(path, params.access));
    for (RowTable const &table : tables_) {
        File const &file = *files_[table.file];
        uint64_t const align = file.alignment();
        buffer_bytes_ = std::max(buffer_bytes_, (table.row_bytes + 2 * align) / align * align);
        if (!file.direct()) reader.kind = ReaderKind::threads; // a buffered file's pages are dropped after each pread
    }
    // Most of the memory is for rows that are kept.
    uint64_t const most = std::max<uint64_t>(1, params.bytes / 4 / buffer_bytes_);
    auto const n_buffer = static_cast<uint32_t>(std::clamp<uint64_t>(reader.n_lane, 1, most));
    buffers_ = Arena(n_buffer * buffer_bytes_, false);
    for (uint32_t i = 0; i < n_buffer; i++) free_.push_back(n_buffer - 1 - i);
    span_of_.resize(n_buffer);
    uint64_t const left = params.bytes - std::min(params.bytes, n_buffer * buffer_bytes_);
    caches_.reserve(tables_.size());
    for (RowTable const &table : tables_) caches_.emplace_back(left / tables_.size(), table.row_bytes, table.n_row);
    reader_ = make_reader(reader, faults, *this);
}

RowReader::~RowReader() = default;

Failure RowReader::gather(size_t table, const int32_t *rows, size_t n, const Take &take) {
    RowTable const &t = tables_[table];
    if (Failure const wrong = sort(t, rows, n)) return wrong;
    missing_.clear();
    for (size_t first = 0; first < wanted_.size();) {
        Group group{first, first + 1};
        while (group.end < wanted_.size() && wanted_[group.end].row == wanted_[first].row) group.end++;
        first = group.end;
        if (const uint8_t *here = caches_[table].find(wanted_[group.first].row)) {
            n_hit_++;
            give(group, here, take);
        } else {
            missing_.push_back(group);
        }
    }
    n_miss_ += missing_.size();
    plan_reads(t);
    Failure failure;
    size_t next = 0, n_under_way = 0;
    while (n_under_way != 0 || (next < spans_.size() && !failure)) {
        while (next < spans_.size() && !free_.empty() && !failure) {
            uint32_t const buffer = free_.back();
            free_.pop_back();
            n_under_way++;
            if (!begin_read(t, next++, buffer)) break;
        }
        std::vector<Ended> over;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [this] { return !ended_.empty(); });
            over.swap(ended_);
        }
        for (Ended const &e : over) {
            auto const buffer = static_cast<uint32_t>(e.tag);
            n_under_way--;
            free_.push_back(buffer);
            if (!e.error.empty() && !failure) failure = {EMOE_ERR_IO, e.error};
            if (!failure) finish_read(table, spans_[span_of_[buffer]], buffers_.data() + buffer * buffer_bytes_, take);
        }
    }
    return failure;
}

// wanted_: in the order of the file.
Failure RowReader::sort(const RowTable &table, const int32_t *rows, size_t n) {
    wanted_.clear();
    for (size_t i = 0; i < n; i++) {
        if (rows[i] < 0 || static_cast<uint64_t>(rows[i]) >= table.n_row)
            return {EMOE_ERR_INTERNAL, "the graph asks for row " + std::to_string(rows[i]) + " of a table of " +
                                           std::to_string(table.n_row)};
        wanted_.push_back({static_cast<uint32_t>(rows[i]), static_cast<uint32_t>(i)});
    }
    std::sort(wanted_.begin(), wanted_.end(), [](Wanted const &a, Wanted const &b) { return a.row < b.row; });
    return {};
}

// spans_: what is missing, in as few reads as it takes.
void RowReader::plan_reads(const RowTable &table) {
    uint64_t const align = files_[table.file]->alignment();
    spans_.clear();
    for (size_t g = 0; g < missing_.size(); g++) {
        uint64_t const at = table.offset + uint64_t{wanted_[missing_[g].first].row} * table.row_bytes;
        uint64_t const begin = at / align * align, end = at + table.row_bytes;
        uint64_t const whole = (end + align - 1) / align * align;
        bool const joins = !spans_.empty() && begin <= spans_.back().offset + spans_.back().bytes + k_gap &&
                           whole - spans_.back().offset <= buffer_bytes_;
        if (!joins) spans_.push_back({g, g, begin, 0, 0});
        Span &span = spans_.back();
        span.end = g + 1;
        span.bytes = whole - span.offset;
        span.need = end - span.offset;
    }
}

// False when the system refused it: that is among what has ended then.
bool RowReader::begin_read(const RowTable &table, size_t index, uint32_t buffer) {
    Span const &span = spans_[index];
    File const &file = *files_[table.file];
    span_of_[buffer] = index;
    ReadRequest request;
    request.file = &file;
    request.offset = span.offset;
    request.bytes = static_cast<uint32_t>(span.bytes);
    request.need = static_cast<uint32_t>(span.need);
    request.alignment = file.alignment();
    request.dst = buffers_.data() + buffer * buffer_bytes_;
    request.tag = buffer;
    std::vector<Ended> const refused = reader_->submit(&request, 1);
    if (refused.empty()) return true;
    std::lock_guard<std::mutex> const lock(mutex_);
    ended_.insert(ended_.end(), refused.begin(), refused.end());
    return false;
}

void RowReader::finish_read(size_t table, const Span &span, const uint8_t *bytes, const Take &take) {
    RowTable const &t = tables_[table];
    for (size_t g = span.first; g < span.end; g++) {
        uint32_t const row = wanted_[missing_[g].first].row;
        uint8_t *const kept = caches_[table].insert(row);
        memcpy(kept, bytes + (t.offset + uint64_t{row} * t.row_bytes - span.offset), t.row_bytes);
        give(missing_[g], kept, take);
    }
}

void RowReader::give(const Group &group, const uint8_t *row, const Take &take) const {
    for (size_t i = group.first; i < group.end; i++) take(wanted_[i].index, row);
}

const File *RowReader::changed_file() {
    uint64_t const n_read = reader_->n_read();
    if (n_read == n_read_checked_) return nullptr;
    n_read_checked_ = n_read;
    return changed_of(files_);
}

void RowReader::accept_files() {
    for (auto const &file : files_) file->accept();
}

bool RowReader::same_as_files() const {
    bool same = true;
    for (size_t i = 0; i < tables_.size() && same; i++) {
        RowTable const &t = tables_[i];
        File const &file = *files_[t.file];
        uint64_t const align = file.alignment();
        Arena const block((t.row_bytes + 2 * align) / align * align, false);
        caches_[i].each([&](uint32_t row, const uint8_t *kept) {
            uint64_t const at = t.offset + uint64_t{row} * t.row_bytes, begin = at / align * align;
            auto const need = static_cast<uint32_t>(at + t.row_bytes - begin);
            auto const bytes = static_cast<uint32_t>((need + align - 1) / align * align);
            ReadRequest const request{&file, begin, bytes, need, file.alignment(), block.data(), 0};
            same = same && read_now(request).empty() && memcmp(block.data() + (at - begin), kept, t.row_bytes) == 0;
        });
    }
    return same;
}

void RowReader::on_read(uint64_t tag, const std::string &error) {
    {
        std::lock_guard<std::mutex> const lock(mutex_);
        ended_.push_back({tag, error});
    }
    wake_.notify_one();
}

} // namespace emoe
