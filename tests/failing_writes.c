// Preloaded: of all writes, syncs and renames below a folder, the n-th fails. For tests/failing_writes.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE, SYNC, RENAME, TRUNCATE, N_KIND };

static char g_folder[PATH_MAX];
static size_t g_folder_bytes;
static int g_error;
static atomic_long g_left = -1; // of the operation that fails; -1: none does
static atomic_long g_count[N_KIND];
static atomic_int g_met = -1;

// The n-th operation from now fails with this errno. n: -1 for none, they are counted all the same.
void failing_writes_arm(const char *folder, long n, int error) {
    g_folder_bytes = strlen(strncpy(g_folder, folder, sizeof g_folder - 1));
    g_error = error;
    g_met = -1;
    for (int kind = 0; kind < N_KIND; kind++) g_count[kind] = 0;
    g_left = n;
}
long failing_writes_count(int kind) { return g_count[kind]; }
int failing_writes_met(void) { return g_met; } // the kind of the one that failed, -1 before

static int fails_at(const char *path, int kind) {
    if (g_folder_bytes == 0 || strncmp(path, g_folder, g_folder_bytes) != 0) return 0;
    g_count[kind]++;
    if (g_left < 0 || atomic_fetch_sub(&g_left, 1) != 0) return 0;
    g_met = kind;
    errno = g_error;
    return 1;
}

static int fails(int fd, int kind) {
    char link[64], path[PATH_MAX];
    int const before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t const n = readlink(link, path, sizeof path - 1);
    errno = before;
    if (n < 0) return 0;
    path[n] = 0;
    return fails_at(path, kind);
}

// What fwrite has kept until then; like the real one, it marks the stream.
static int fails_with(FILE *f) {
    if (!fails(fileno(f), WRITE)) return 0;
    f->_flags |= 0x20; // glibc's mark of ferror()
    return 1;
}

// Each looks the real one up once: DEFINE(result, name, (parameters), (arguments), what fails, result of a failure).
#define DEFINE(type, name, parameters, arguments, failing, failed)                                                     \
    type name parameters {                                                                                             \
        static type(*real) parameters;                                                                                 \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                                                          \
        return failing ? failed : real arguments;                                                                      \
    }

DEFINE(ssize_t, write, (int fd, const void *p, size_t n), (fd, p, n), fails(fd, WRITE), -1)
DEFINE(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n), fails(fd, WRITE), -1)
DEFINE(ssize_t, pwrite, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at), fails(fd, WRITE), -1)
DEFINE(ssize_t, pwrite64, (int fd, const void *p, size_t n, off64_t at), (fd, p, n, at), fails(fd, WRITE), -1)
DEFINE(ssize_t, copy_file_range, (int in, off64_t *at, int out, off64_t *to, size_t n, unsigned flags),
       (in, at, out, to, n, flags), fails(out, WRITE), -1)
DEFINE(int, fflush, (FILE * f), (f), f != NULL && fails_with(f), EOF)
DEFINE(int, fsync, (int fd), (fd), fails(fd, SYNC), -1)
DEFINE(int, fdatasync, (int fd), (fd), fails(fd, SYNC), -1)
DEFINE(int, rename, (const char *from, const char *to), (from, to), fails_at(to, RENAME), -1)
DEFINE(int, ftruncate, (int fd, off_t n), (fd, n), fails(fd, TRUNCATE), -1)
DEFINE(int, ftruncate64, (int fd, off64_t n), (fd, n), fails(fd, TRUNCATE), -1)
