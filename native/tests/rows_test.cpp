// Rows of tables: which are kept, how they are read, and what happens when a read goes wrong.
#include "cache/rows.h"
#include "pipeline/rows.h"

#include "check.h"
#include "temporary.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

using namespace emoe;

namespace {

constexpr uint32_t k_row_bytes = 170, k_n_row = 50000;
constexpr uint64_t k_offset = 1234; // of the table in its file

uint8_t byte_of(uint32_t row, uint32_t i) { return static_cast<uint8_t>(row * 31 + i * 7 + (row >> 8)); }

// A file with a table of known rows, away when it goes.
struct TableFile : TemporaryFile {
    TableFile() : TemporaryFile(content()) {}
    static std::string content() {
        std::string bytes(k_offset + uint64_t{k_n_row} * k_row_bytes, 0);
        for (uint32_t row = 0; row < k_n_row; row++)
            for (uint32_t i = 0; i < k_row_bytes; i++)
                bytes[k_offset + uint64_t{row} * k_row_bytes + i] = static_cast<char>(byte_of(row, i));
        return bytes;
    }
};

bool is_row(const uint8_t *bytes, uint32_t row) {
    for (uint32_t i = 0; i < k_row_bytes; i++)
        if (bytes[i] != byte_of(row, i)) return false;
    return true;
}

RowReader reader_of(const TableFile &file, Faults &faults, ReaderKind kind, uint64_t bytes = 1 << 20) {
    RowReader::Params params;
    params.bytes = bytes;
    params.reader.kind = kind;
    return {{file.path}, {{0, k_offset, k_row_bytes, k_n_row}}, params, faults};
}

// Every row that was asked for came, in the place of its number.
void check_gather(RowReader &reader, const std::vector<int32_t> &rows) {
    std::vector<int> taken(rows.size(), 0);
    Failure const failure = reader.gather(0, rows.data(), rows.size(), [&](size_t i, const uint8_t *bytes) {
        taken[i]++;
        CHECK(is_row(bytes, static_cast<uint32_t>(rows[i])));
    });
    CHECK(!failure);
    for (int const n : taken) CHECK_EQ(n, 1);
}

std::vector<int32_t> some_rows(std::mt19937 &random, size_t n, uint32_t most = k_n_row) {
    std::vector<int32_t> rows;
    for (size_t i = 0; i < n; i++) rows.push_back(static_cast<int32_t>(random() % most));
    return rows;
}

void rows_come_in_the_order_they_were_asked_for_in() {
    TableFile const file;
    for (ReaderKind const kind : {ReaderKind::automatic, ReaderKind::threads}) {
        Faults faults;
        RowReader reader = reader_of(file, faults, kind);
        std::mt19937 random(1);
        for (size_t const n : {1, 16, 512, 8192}) check_gather(reader, some_rows(random, n));
        check_gather(reader, {0, k_n_row - 1, 0, 7, 7, 7});
        check_gather(reader, {});
        CHECK(reader.same_as_files());
        CHECK(reader.changed_file() == nullptr);
    }
}

void a_row_is_read_once_and_then_found() {
    TableFile const file;
    Faults faults;
    RowReader reader = reader_of(file, faults, ReaderKind::threads);
    check_gather(reader, {5, 9, 5, 9, 5});
    CHECK_EQ(reader.n_miss(), 2);
    CHECK_EQ(reader.n_hit(), 0);
    uint64_t const read = reader.read_bytes();
    CHECK(read <= 8192); // near each other in the file: one read
    check_gather(reader, {9, 5});
    CHECK_EQ(reader.n_hit(), 2);
    CHECK_EQ(reader.read_bytes(), read);
}

void neighbours_are_one_pass_over_the_file() {
    TableFile const file;
    Faults faults;
    RowReader reader = reader_of(file, faults, ReaderKind::threads);
    std::vector<int32_t> rows;
    for (int32_t row = 4000; row > 0; row--) rows.push_back(row); // backwards
    check_gather(reader, rows);
    uint64_t const table = uint64_t{4000} * k_row_bytes;
    CHECK(reader.read_bytes() < table + table / 8);
}

void a_failed_read_fails_one_call() {
    TableFile const file;
    for (ReaderKind const kind : {ReaderKind::automatic, ReaderKind::threads}) {
        Faults faults;
        RowReader reader = reader_of(file, faults, kind);
        std::mt19937 random(2);
        faults.kind = EMOE_FAULT_FAIL;
        faults.countdown = 3;
        std::vector<int32_t> const rows = some_rows(random, 100);
        Failure const failure = reader.gather(0, rows.data(), rows.size(),
                                              [&](size_t i, const uint8_t *bytes) { CHECK(is_row(bytes, rows[i])); });
        CHECK_EQ(failure.status, EMOE_ERR_IO);
        CHECK(failure.message.find(file.path) != std::string::npos);
        check_gather(reader, rows);
        faults.kind = EMOE_FAULT_SHORT;
        faults.countdown = 2;
        check_gather(reader, some_rows(random, 100));
    }
}

void numbers_outside_the_table_are_refused() {
    TableFile const file;
    Faults faults;
    RowReader reader = reader_of(file, faults, ReaderKind::threads);
    for (int32_t const row : {-1, static_cast<int32_t>(k_n_row)}) {
        Failure const failure = reader.gather(0, &row, 1, [](size_t, const uint8_t *) { CHECK(false); });
        CHECK_EQ(failure.status, EMOE_ERR_INTERNAL);
    }
}

void a_file_that_changed_is_noticed() {
    TableFile const file;
    Faults faults;
    RowReader reader = reader_of(file, faults, ReaderKind::threads);
    check_gather(reader, {11, 400});
    FILE *f = fopen(file.path.c_str(), "r+b");
    fseek(f, static_cast<long>(k_offset + 11 * k_row_bytes), SEEK_SET);
    fputc(~byte_of(11, 0) & 0xff, f);
    fclose(f);
    CHECK(!reader.same_as_files());
    check_gather(reader, {30000});
    CHECK(reader.changed_file() != nullptr);
    reader.accept_files();
    check_gather(reader, {31000});
    CHECK(reader.changed_file() == nullptr);
}

void a_full_set_gives_up_what_was_used_least_recently() {
    RowCache cache(1, 4, 1000); // one set, of eight
    CHECK_EQ(cache.n_slot(), 8);
    for (uint32_t row = 0; row < 8; row++) *cache.insert(row) = static_cast<uint8_t>(row);
    CHECK(cache.find(0) != nullptr);
    *cache.insert(100) = 100;
    CHECK(cache.find(1) == nullptr);
    for (uint32_t const row : {0, 2, 3, 4, 5, 6, 7, 100}) {
        const uint8_t *bytes = cache.find(row);
        CHECK(bytes != nullptr);
        if (bytes) CHECK_EQ(*bytes, row);
    }
    std::set<uint32_t> here;
    cache.each([&](uint32_t row, const uint8_t *) { here.insert(row); });
    CHECK_EQ(here.size(), 8);
}

void many_sets_hold_about_what_they_have_room_for() {
    RowCache cache(uint64_t{1} << 20, 100, 1 << 20);
    CHECK(cache.n_slot() * 105 <= (uint64_t{1} << 20));
    CHECK(cache.n_slot() * 105 > (uint64_t{15} << 16)); // most of it
    auto const n = static_cast<uint32_t>(cache.n_slot() / 2);
    for (uint32_t row = 0; row < n; row++) cache.insert(row * 977);
    uint32_t n_here = 0;
    for (uint32_t row = 0; row < n; row++) n_here += cache.find(row * 977) != nullptr;
    CHECK(n_here > n / 10 * 9);
}

} // namespace

int main() {
    rows_come_in_the_order_they_were_asked_for_in();
    a_row_is_read_once_and_then_found();
    neighbours_are_one_pass_over_the_file();
    a_failed_read_fails_one_call();
    numbers_outside_the_table_are_refused();
    a_file_that_changed_is_noticed();
    a_full_set_gives_up_what_was_used_least_recently();
    many_sets_hold_about_what_they_have_room_for();
    return g_failures;
}
