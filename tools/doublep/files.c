/* files.c: see files.h. */
#include "files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

static gzFile open_file(const char *path)
{
    errno = 0;
    if (strcmp(path, "-") != 0)
        return gzopen(path, "rb");
    const int fd = dup(STDIN_FILENO); /* gzclose closes its own */
    gzFile file = fd < 0 ? NULL : gzdopen(fd, "rb");
    if (!file && fd >= 0)
        close(fd);
    return file;
}

char *file_read(const char *path, size_t *length, char *error, size_t error_size)
{
    enum { STEP = 1 << 20 };
    const char *const name = strcmp(path, "-") == 0 ? "stdin" : path;
    char *bytes = NULL;
    size_t used = 0, capacity = 0;
    gzFile file = open_file(path);
    if (!file) {
        snprintf(error, error_size, "%s: %s", name, errno ? strerror(errno) : "out of memory");
        return NULL;
    }
    for (;;) {
        if (used + STEP + 1 > capacity) {
            capacity = 2 * capacity + STEP + 1;
            char *const larger = realloc(bytes, capacity);
            if (!larger) {
                snprintf(error, error_size, "%s: out of memory", name);
                goto fail;
            }
            bytes = larger;
        }
        const int n = gzread(file, bytes + used, STEP);
        if (n < 0) {
            int code;
            const char *const reason = gzerror(file, &code);
            snprintf(error, error_size, "%s: %s", name, code == Z_ERRNO ? strerror(errno) : reason);
            goto fail;
        }
        if (n == 0)
            break;
        used += (size_t)n;
    }
    const int status = gzclose_r(file);
    if (status != Z_OK) {
        snprintf(error, error_size, "%s: %s", name, status == Z_BUF_ERROR ? "the compressed file ends early" : "read error");
        free(bytes);
        return NULL;
    }
    bytes[used] = '\0';
    *length = used;
    return bytes;
fail:
    gzclose_r(file);
    free(bytes);
    return NULL;
}
