/* /proc/meminfo, and the limits of control groups: a container's memory is not the machine's. */
#include "memory/system.h"

#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "doublep/doublep.h"
#include "runtime/error.h"

typedef struct text {
    char bytes[8192]; /* what counts comes early in all of these files */
} text;

static bool read_text(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool read_text(text *t, const char *format, ...)
{
    char path[PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(path, sizeof path, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof path) return false;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    size_t n = 0;
    for (ssize_t got; n < sizeof t->bytes - 1 && (got = read(file, t->bytes + n, sizeof t->bytes - 1 - n)) > 0;)
        n += (size_t)got;
    close(file);
    t->bytes[n] = '\0';
    return n > 0;
}

/* The number after a name at the beginning of a line. */
static bool find_number(const text *t, const char *name, uint64_t *number)
{
    const size_t length = strlen(name);
    for (const char *line = t->bytes; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        char *end;
        if (strncmp(line, name, length) != 0) continue;
        *number = strtoull(line + length, &end, 10);
        return end != line + length;
    }
    return false;
}

/* One version's files in a group's folder. */
typedef struct group_files {
    const char *mount, *limit, *used, *cached[2];
} group_files;

static void apply_group(const char *root, const group_files *files, const char *path, uint64_t *total, uint64_t *available)
{
    text t;
    uint64_t limit, used;
    if (!read_text(&t, "%s%s%s/%s", root, files->mount, path, files->limit)) return;
    if (!find_number(&t, "", &limit)) return; /* "max" */
    if (limit < *total) *total = limit;
    if (!read_text(&t, "%s%s%s/%s", root, files->mount, path, files->used) || !find_number(&t, "", &used)) return;
    const bool stated = read_text(&t, "%s%s%s/memory.stat", root, files->mount, path);
    for (int i = 0; i < 2 && stated; i++) { /* the page cache is given up where memory is wanted */
        uint64_t cached;
        if (find_number(&t, files->cached[i], &cached)) used -= cached < used ? cached : used;
    }
    const uint64_t left = limit > used ? limit - used : 0;
    if (left < *available) *available = left;
}

/* A group's limit and those of the groups around it. In a container the path may be that of the host, and then only the
 * mount's own folder is there. */
static void apply_groups(const char *root, const group_files *files, char *path, uint64_t *total, uint64_t *available)
{
    for (char *end = path + strlen(path); end; end = strrchr(path, '/')) {
        *end = '\0';
        apply_group(root, files, path, total, available);
    }
}

bool dp_system_memory_read(const char *root, uint64_t *total, uint64_t *available)
{
    static const group_files first = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                      {"total_inactive_file ", "total_active_file "}},
                             second = {"/sys/fs/cgroup", "memory.max", "memory.current",
                                       {"inactive_file ", "active_file "}};
    text t;
    if (!read_text(&t, "%s/proc/meminfo", root) || !find_number(&t, "MemTotal:", total) ||
        !find_number(&t, "MemAvailable:", available))
        return false;
    *total *= 1024; /* "kB" */
    *available *= 1024;
    if (!read_text(&t, "%s/proc/self/cgroup", root)) return true;
    char *rest;
    for (char *line = strtok_r(t.bytes, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *const controllers = strchr(line, ':'), *const path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *path = '\0';
        if (controllers[1] == '\0')
            apply_groups(root, &second, path + 1, total, available);
        else if (strstr(controllers, "memory"))
            apply_groups(root, &first, path + 1, total, available);
    }
    return true;
}

dp_status dp_system_memory(uint64_t *total, uint64_t *available)
{
    uint64_t all, left;
    if (!total && !available) return dp_fail(NULL, DP_ERR_INVALID, "dp_system_memory: total and available are NULL");
    if (!dp_system_memory_read("", &all, &left))
        return dp_fail(NULL, DP_ERR_SYSTEM, "dp_system_memory: /proc/meminfo cannot be read");
    if (total) *total = all;
    if (available) *available = left;
    return DP_OK;
}
