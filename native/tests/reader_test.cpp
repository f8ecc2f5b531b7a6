// The asynchronous reader: right bytes, every kind of fault at every read, throttle, early end.
#include "base/arena.h"
#include "base/clock.h"
#include "base/error.h"
#include "io/reader.h"
#include "io/writable.h"

#include "check.h"
#include "temporary.h"

#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <pthread.h>
#include <vector>

using namespace emoe;

namespace {

constexpr uint32_t k_block = 4096;
constexpr uint32_t k_read = 3 * k_block;
constexpr uint32_t k_n_read = 16;

// A file of k_n_read * k_read - 100 bytes whose byte at i is i * 7 + i / 251.
struct TestFile : TemporaryFile {
    TestFile() : TemporaryFile(content()) {}
    static std::string content() {
        std::string content(uint64_t{k_n_read} * k_read - 100, 0);
        for (size_t i = 0; i < content.size(); i++) content[i] = byte_at(i);
        return content;
    }
    static char byte_at(uint64_t i) { return static_cast<char>(i * 7 + i / 251); }
};

class Results final : public ReadSink {
public:
    void on_read(uint64_t tag, const std::string &error) override {
        std::lock_guard<std::mutex> const lock(mutex_);
        errors_[tag] = error;
        changed_.notify_all();
    }
    // What submit gave back counts as heard.
    void submit(Reader &reader, const std::vector<ReadRequest> &requests) {
        for (Ended const &e : reader.submit(requests.data(), requests.size())) on_read(e.tag, e.error);
    }
    void wait(size_t n) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return errors_.size() == n; });
    }
    std::map<uint64_t, std::string> errors_;

private:
    std::mutex mutex_;
    std::condition_variable changed_;
};

struct Buffer {
    Arena arena{size_t{k_n_read} * k_read, false};
    uint8_t *data = arena.data();
    Buffer() { memset(data, 0xee, size_t{k_n_read} * k_read); }
    bool holds(uint32_t read) const {
        uint64_t const begin = uint64_t{read} * k_read;
        for (uint64_t i = begin; i < begin + need(read); i++)
            if (static_cast<char>(data[i]) != TestFile::byte_at(i)) return false;
        return true;
    }
    static uint32_t need(uint32_t read) { return read == k_n_read - 1 ? k_read - 100 : k_read; }
};

std::vector<ReadRequest> all_reads(const File &file, Buffer &buffer) {
    std::vector<ReadRequest> requests;
    for (uint32_t i = 0; i < k_n_read; i++) {
        ReadRequest r;
        r.file = &file;
        r.offset = uint64_t{i} * k_read;
        r.bytes = k_read;
        r.need = Buffer::need(i);
        r.alignment = k_block;
        r.dst = buffer.data + r.offset;
        r.tag = i;
        requests.push_back(r);
    }
    return requests;
}

// Both engines go through everything; g_kind is the one under test.
ReaderKind g_kind = ReaderKind::threads;

std::unique_ptr<Reader> open_reader(uint32_t n_lane, Faults &faults, ReadSink &sink) {
    ReaderParams params;
    params.kind = g_kind;
    params.n_lane = n_lane;
    return make_reader(params, faults, sink);
}

void reads_arrive_whole(FileAccess access) {
    TestFile const f;
    File const file(f.path, access);
    Buffer buffer;
    Results results;
    Faults faults;
    auto const reader = open_reader(4, faults, results);
    CHECK(reader->kind() == g_kind);
    auto const requests = all_reads(file, buffer);
    results.submit(*reader, requests);
    results.wait(k_n_read);
    for (uint32_t i = 0; i < k_n_read; i++) {
        CHECK(results.errors_[i].empty());
        CHECK(buffer.holds(i));
    }
    CHECK_EQ(reader->n_read(), uint64_t{k_n_read});
}

// Every n: exactly one read goes wrong (or none, with the delay and the short read, which is made good).
void one_fault_at_every_read(uint32_t kind, bool is_error) {
    TestFile const f;
    File file(f.path, FileAccess::direct);
    for (uint64_t n = 0; n < k_n_read; n++) {
        Faults faults;
        faults.kind = kind;
        faults.countdown = n;
        Buffer buffer;
        Results results;
        auto const reader = open_reader(2, faults, results);
        auto const requests = all_reads(file, buffer);
        results.submit(*reader, requests);
        results.wait(k_n_read);
        uint32_t n_error = 0;
        for (uint32_t i = 0; i < k_n_read; i++) {
            if (results.errors_[i].empty())
                CHECK(buffer.holds(i));
            else
                n_error++;
        }
        CHECK_EQ(n_error, is_error ? 1u : 0u);
    }
}

void a_file_that_ended_early_is_an_error() {
    TestFile const f;
    File file(f.path, FileAccess::direct);
    WritableFile(f.path).resize(5 * k_read + 10);
    Buffer buffer;
    Results results;
    Faults faults;
    auto const reader = open_reader(3, faults, results);
    auto const requests = all_reads(file, buffer);
    results.submit(*reader, requests);
    results.wait(k_n_read);
    for (uint32_t i = 0; i < k_n_read; i++) CHECK_EQ(results.errors_[i].empty(), i < 5);
    CHECK(results.errors_[5].find("early") != std::string::npos);
}

void closing_drops_what_has_not_begun() {
    TestFile const f;
    File file(f.path, FileAccess::direct);
    Faults faults;
    faults.kind = EMOE_FAULT_DELAY;
    faults.countdown = 0;
    Buffer buffer;
    Results results;
    {
        auto const reader = open_reader(1, faults, results);
        auto const requests = all_reads(file, buffer);
        results.submit(*reader, requests);
    }
    CHECK(results.errors_.size() < k_n_read);
}

// io_uring_enter fails at every place, once or from then on, submitting or waiting: each request is heard of, what says
// that it arrived has arrived, the reader can be closed, and after a single failure it reads on.
void an_enter_that_fails_is_no_silence(int error, bool stays) {
    TestFile const f;
    File const file(f.path, FileAccess::direct);
    uint32_t n_refused = 0;
    for (uint64_t n = 0; n < 24; n++) {
        Faults faults;
        Results results;
        auto const reader = open_reader(2, faults, results);
        Buffer buffer;
        faults.enter_error = error;
        faults.enter_stays = stays;
        faults.enter_countdown = n;
        auto const requests = all_reads(file, buffer);
        results.submit(*reader, requests);
        results.wait(k_n_read);
        for (uint32_t i = 0; i < k_n_read; i++) {
            if (results.errors_[i].empty())
                CHECK(buffer.holds(i));
            else
                CHECK(results.errors_[i].find(os_message(error)) != std::string::npos);
            n_refused += results.errors_[i].empty() ? 0 : 1;
        }
        if (stays) continue; // closing is what is tested
        faults.enter_countdown = UINT64_MAX;
        Buffer again;
        results.errors_.clear();
        results.submit(*reader, all_reads(file, again));
        results.wait(k_n_read);
        for (uint32_t i = 0; i < k_n_read; i++) CHECK(results.errors_[i].empty() && again.holds(i));
    }
    CHECK_EQ(n_refused > 0, error != EINTR && error != EAGAIN);
}

void a_ring_of_which_nothing_may_be_asked_is_none() {
    Faults faults;
    Results results;
    faults.enter_error = EPERM;
    faults.enter_stays = true;
    faults.enter_countdown = 0;
    CHECK(make_uring_reader(ReaderParams{}, faults, results) == nullptr);
    CHECK(make_reader(ReaderParams{}, faults, results)->kind() == ReaderKind::threads);
}

#ifdef __GLIBC__
// A system that gives no thread, by stacks that nobody can have.
void no_thread_is_one_clear_error() {
    pthread_attr_t before, huge;
    if (pthread_getattr_default_np(&before) != 0 || pthread_getattr_default_np(&huge) != 0) return;
    pthread_attr_setstacksize(&huge, size_t{1} << 60);
    if (pthread_setattr_default_np(&huge) != 0) return;
    Faults faults;
    Results results;
    for (ReaderKind const kind : {ReaderKind::automatic, ReaderKind::threads}) {
        ReaderParams params;
        params.kind = kind;
        std::string message;
        try {
            (void)make_reader(params, faults, results);
        } catch (const Error &e) {
            message = e.what();
        }
        CHECK(message.find("no thread to read with") != std::string::npos);
    }
    pthread_setattr_default_np(&before);
}
#endif

void missing_file_is_one_clear_error() {
    std::string message;
    try {
        File const file("/nonexistent/model.gguf", FileAccess::direct);
    } catch (const Error &e) {
        message = e.what();
    }
    CHECK(message.find("/nonexistent/model.gguf") != std::string::npos);
    CHECK(message.find("No such file") != std::string::npos);
}

} // namespace

int main() {
    missing_file_is_one_clear_error();
#ifdef __GLIBC__
    no_thread_is_one_clear_error();
#endif
    for (ReaderKind kind : {ReaderKind::threads, ReaderKind::uring}) {
        g_kind = kind;
        Faults faults;
        Results results;
        if (kind == ReaderKind::uring && !make_uring_reader(ReaderParams{}, faults, results)) {
            fprintf(stderr, "io_uring is not allowed here: only the thread engine was tested\n");
            continue;
        }
        for (FileAccess const access : {FileAccess::direct, FileAccess::buffered, FileAccess::page_cache})
            reads_arrive_whole(access);
        one_fault_at_every_read(EMOE_FAULT_FAIL, true);
        one_fault_at_every_read(EMOE_FAULT_TRUNCATE, true);
        one_fault_at_every_read(EMOE_FAULT_SHORT, false);
        one_fault_at_every_read(EMOE_FAULT_INTERRUPT, false);
        a_file_that_ended_early_is_an_error();
        closing_drops_what_has_not_begun();
        if (kind != ReaderKind::uring) continue;
        for (int const error : {EPERM, EINVAL, ENOMEM, EBADF})
            for (bool const stays : {false, true}) an_enter_that_fails_is_no_silence(error, stays);
        for (int const error : {EINTR, EAGAIN}) an_enter_that_fails_is_no_silence(error, false);
        a_ring_of_which_nothing_may_be_asked_is_none();
    }
    return g_failures;
}
