/* open, pwrite, fsync, rename, and fsync of the folder. */
#include "runtime/replace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ATTEMPTS = 100, SUFFIX = 48 };

static int open_folder(const char *path)
{
    const char *const slash = strrchr(path, '/');
    if (!slash) return open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    char *const folder = strndup(path, (size_t)(slash - path) + 1);
    if (!folder) return -1;
    const int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int error = errno;
    free(folder);
    errno = error;
    return descriptor;
}

/* A file that was not there before; the number tells the threads of a process apart, and what crashes have left. */
static int open_temporary(dp_replacement *r)
{
    static atomic_uint count;
    const size_t size = strlen(r->path) + SUFFIX;
    r->temporary = malloc(size);
    if (!r->temporary) return -1;
    int descriptor = -1;
    for (int i = 0; i < ATTEMPTS; i++) {
        snprintf(r->temporary, size, "%s.%ld-%u.tmp", r->path, (long)getpid(), atomic_fetch_add(&count, 1));
        descriptor = open(r->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor >= 0 || errno != EEXIST) break;
    }
    if (descriptor < 0) {
        const int error = errno;
        free(r->temporary);
        r->temporary = NULL;
        errno = error;
    }
    return descriptor;
}

int dp_replace_begin(dp_replacement *r, const char *path)
{
    *r = (dp_replacement){.path = path, .file = -1};
    r->folder = open_folder(path);
    if (r->folder < 0) return errno;
    r->file = open_temporary(r);
    return r->file < 0 ? errno : 0;
}

int dp_replace_write(const dp_replacement *r, uint64_t offset, const void *data, size_t bytes)
{
    const char *p = data;
    while (bytes) {
        const ssize_t n = pwrite(r->file, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n ? errno : ENOSPC;
        p += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

static void close_all(dp_replacement *r)
{
    if (r->file >= 0) close(r->file);
    if (r->folder >= 0) close(r->folder);
    free(r->temporary);
    *r = (dp_replacement){.file = -1, .folder = -1};
}

int dp_replace_finish(dp_replacement *r, uint64_t file_bytes)
{
    if (ftruncate(r->file, (off_t)file_bytes) || fsync(r->file)) return errno;
    const int file = r->file;
    r->file = -1;
    if (close(file) && errno != EINTR) return errno;
    if (rename(r->temporary, r->path)) return errno;
    free(r->temporary); /* is the file itself now, and stays */
    r->temporary = NULL;
    if (fsync(r->folder) && errno != EINVAL) return errno; /* EINVAL: a file system that has no need of it */
    close_all(r);
    return 0;
}

void dp_replace_give_up(dp_replacement *r)
{
    if (r->temporary) unlink(r->temporary);
    close_all(r);
}
