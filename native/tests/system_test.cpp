// What the system is asked for, on every system alike: pages that go and come, files past the cache, files written at
// places, locks, names that are UTF-8, libraries.
#include "base/arena.h"
#include "base/error.h"
#include "base/machine.h"
#include "base/module.h"
#include "base/paths.h"
#include "io/file.h"
#include "io/writable.h"

#include "check.h"
#include "temporary.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#ifdef __linux__
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

using namespace emoe;

namespace {

constexpr size_t k_mib = size_t{1} << 20;

uint64_t grown(uint64_t before) {
    uint64_t const now = rss_bytes();
    return now > before ? now - before : 0;
}

// Not counted under ThreadSanitizer, which keeps notes of all that was ever touched.
bool grew_within(uint64_t before, uint64_t bytes) {
#ifdef __SANITIZE_THREAD__
    (void)before, (void)bytes;
    return true;
#else
    return grown(before) <= bytes;
#endif
}

void pages_that_are_given_back_leave_the_process() {
    uint64_t const before = rss_bytes();
    Arena const arena(64 * k_mib);
    CHECK(grew_within(before, 16 * k_mib)); // nothing is resident before it is touched
    memset(arena.data(), 'x', arena.size());
    CHECK(grown(before) >= 60 * k_mib);
    arena.release();
    CHECK(grew_within(before, 16 * k_mib));
    memset(arena.data(), 'y', arena.size()); // and may be used again
    CHECK(grown(before) >= 60 * k_mib);
    CHECK_EQ(arena.data()[arena.size() - 1], 'y');
}

void what_is_kept_keeps_its_content() {
    uint64_t const before = rss_bytes();
    Arena const arena = Arena::reserved(64 * k_mib);
    for (size_t const n : {size_t{8}, size_t{48}, size_t{16}, size_t{32}}) {
        arena.keep(n * k_mib);
        CHECK(grew_within(before, (n + 12) * k_mib));
        memset(arena.data() + 4 * k_mib, 'k', (n - 4) * k_mib);
        if (n == 8) memset(arena.data(), 'k', 4 * k_mib);
        for (size_t i = 0; i < n * k_mib; i += 4096) CHECK_EQ(arena.data()[i], 'k');
    }
}

void an_arena_moves() {
    Arena first(k_mib, false), second;
    first.data()[7] = 42;
    second = std::move(first);
    CHECK_EQ(second.data()[7], 42);
    CHECK(second.size() >= k_mib);
    Arena const third(std::move(second));
    CHECK_EQ(third.data()[7], 42);
}

void memory_of_others_can_be_discarded() {
    uint64_t const before = rss_bytes();
    std::vector<char> block(64 * k_mib, 'x');
    CHECK(grown(before) >= 60 * k_mib);
    discard_pages(block.data(), block.size());
    CHECK(grew_within(before, 16 * k_mib));
    memset(block.data(), 'z', block.size());
    CHECK_EQ(block[block.size() / 2], 'z');
}

std::string pattern(size_t n) {
    std::string content(n, 0);
    for (size_t i = 0; i < n; i++) content[i] = static_cast<char>(i * 7 + i / 251);
    return content;
}

void a_file_is_read_at_places_from_threads() {
    std::string const content = pattern(1000003);
    TemporaryFile const there(content);
    for (FileAccess const access : {FileAccess::direct, FileAccess::buffered, FileAccess::page_cache}) {
        File const file(there.path, access);
        CHECK_EQ(file.size(), content.size());
        CHECK(access == FileAccess::direct || !file.direct());
        std::atomic<int> wrong{0};
        auto const read_all = [&](size_t lane) {
            size_t const block = 4 * 4096;
            Arena const to(block, false);
            for (size_t at = lane * block; at < content.size(); at += 4 * block) {
                int64_t const n = file.read(to.data(), block, at);
                size_t const want = std::min(block, content.size() - at);
                if (n != static_cast<int64_t>(want) || memcmp(to.data(), content.data() + at, want) != 0) wrong++;
            }
        };
        std::vector<std::thread> lanes;
        for (size_t i = 0; i < 4; i++) lanes.emplace_back(read_all, i);
        for (std::thread &lane : lanes) lane.join();
        CHECK_EQ(wrong.load(), 0);
        Arena const end(4096, false);
        CHECK_EQ(file.read(end.data(), 4096, (content.size() + 4095) / 4096 * 4096), 0);
        file.drop(0, content.size());
        CHECK(!file.changed());
    }
}

#ifdef __linux__
// Pages of a file in the page cache.
size_t n_cached(const std::string &path, size_t bytes) {
    int const fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    void *const at = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
    std::vector<unsigned char> here(bytes / 4096);
    CHECK(at != MAP_FAILED && mincore(at, bytes, here.data()) == 0);
    munmap(at, bytes);
    close(fd);
    return static_cast<size_t>(std::count_if(here.begin(), here.end(), [](unsigned char c) { return (c & 1) != 0; }));
}

void the_page_cache_keeps_what_it_is_asked_to() {
    constexpr size_t k_bytes = size_t{1} << 20;
    TemporaryFile const there(pattern(k_bytes));
    int const fd = open(there.path.c_str(), O_RDONLY | O_CLOEXEC);
    CHECK_EQ(fsync(fd), 0); // what is not written yet is kept for that alone
    close(fd);
    Arena const to(k_bytes, false);
    size_t kept[3] = {};
    for (FileAccess const access : {FileAccess::buffered, FileAccess::page_cache}) {
        File const file(there.path, access);
        CHECK_EQ(file.read(to.data(), k_bytes, 0), static_cast<int64_t>(k_bytes));
        kept[static_cast<size_t>(access)] = n_cached(there.path, k_bytes);
    }
    CHECK_EQ(kept[EMOE_READ_BUFFERED], 0u);
    CHECK_EQ(kept[EMOE_READ_PAGE_CACHE], k_bytes / 4096);
}
#endif

void what_cannot_be_opened_is_said() {
    for (const char *path : {"not there", "."}) try {
            File const file(path, FileAccess::direct);
            CHECK(false);
        } catch (const Error &e) {
            CHECK_EQ(e.status, EMOE_ERR_IO);
            CHECK(strstr(e.what(), path) != nullptr);
            CHECK(path[0] == '.' || strstr(e.what(), "No such file") != nullptr);
        }
    FileStamp stamp;
    CHECK(!stamp_of("not there", &stamp));
}

void a_file_that_is_written_to_has_changed() {
    TemporaryFile const there(pattern(10000));
    File file(there.path, FileAccess::buffered);
    FileStamp before, after;
    CHECK(stamp_of(there.path, &before));
    CHECK_EQ(before.size, 10000u);
    CHECK(before.modified_ns != 0 && before.inode != 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(30)); // a file system's clock ticks
    WritableFile const out(there.path);
    out.write("new", 3, 9998);
    out.sync();
    CHECK(file.changed());
    file.accept();
    CHECK(!file.changed());
    CHECK(stamp_of(there.path, &after) && after.size == 10001 && after.inode == before.inode);
}

void a_file_appears_whole_or_not_at_all() {
    std::string const name = "system_test-" + std::to_string(process_id()) + "-\xc3\xa4\xe4\xb8\xad.bin";
    std::string temporary;
    FileStamp stamp;
    {
        WritableFile const dropped = WritableFile::beside(name);
        temporary = dropped.path();
        dropped.write("x", 1, 0);
        CHECK(stamp_of(temporary, &stamp));
    }
    CHECK(!stamp_of(temporary, &stamp) && !stamp_of(name, &stamp));
    for (const char *text : {"first", "second"}) { // the second takes the place of the first
        WritableFile out = WritableFile::beside(name);
        out.write(text, strlen(text), 0);
        out.sync();
        temporary = out.path();
        out.publish();
        CHECK(!stamp_of(temporary, &stamp));
    }
    FILE *const file = open_stream(name, "rb");
    char text[16] = {};
    CHECK(file && fread(text, 1, sizeof text, file) == 6 && strcmp(text, "second") == 0);
    if (file) fclose(file);
    std::filesystem::path const found = std::filesystem::absolute(path_of(name));
    CHECK(real_path(name) == text_of(std::filesystem::canonical(found)));
    CHECK(std::filesystem::remove(path_of(name)));
}

void a_file_is_lengthened_without_being_written() {
    TemporaryFile const there("data");
    WritableFile const file(there.path);
    file.resize(64 * k_mib);
    FileStamp stamp;
    CHECK(stamp_of(there.path, &stamp) && stamp.size == 64 * k_mib);
    File const read(there.path, FileAccess::buffered);
    char byte = 'x';
    CHECK(read.read(&byte, 1, 63 * k_mib) == 1 && byte == 0);
    file.resize(4);
    CHECK(stamp_of(there.path, &stamp) && stamp.size == 4);
}

void a_lock_is_one_handles_and_others_still_read() {
    TemporaryFile const there("data");
    std::atomic<bool> second{false};
    std::thread waiting;
    {
        WritableFile const first(there.path);
        first.lock();
        waiting = std::thread([&] {
            WritableFile const other(there.path);
            other.lock();
            second = true;
        });
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        CHECK(!second);
        FILE *const file = open_stream(there.path, "rb"); // as llama.cpp opens it
        char text[8] = {};
        CHECK(file && fread(text, 1, sizeof text, file) == 4 && strcmp(text, "data") == 0);
        if (file) fclose(file);
    }
    waiting.join();
    CHECK(second);
}

void a_library_is_found_by_its_code() {
    std::filesystem::path const own = file_of(reinterpret_cast<void *>(&a_library_is_found_by_its_code));
    CHECK(text_of(own.filename()).find("system_test") != std::string::npos);
    Module const absent(path_of("no-such-library"), false);
    CHECK(!absent.loaded());
    CHECK(absent.function<int()>("anything") == nullptr);
}

} // namespace

int main() {
    pages_that_are_given_back_leave_the_process();
    what_is_kept_keeps_its_content();
    an_arena_moves();
    memory_of_others_can_be_discarded();
    a_file_is_read_at_places_from_threads();
#ifdef __linux__
    the_page_cache_keeps_what_it_is_asked_to();
#endif
    what_cannot_be_opened_is_said();
    a_file_that_is_written_to_has_changed();
    a_file_appears_whole_or_not_at_all();
    a_file_is_lengthened_without_being_written();
    a_lock_is_one_handles_and_others_still_read();
    a_library_is_found_by_its_code();
    return g_failures;
}
