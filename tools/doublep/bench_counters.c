/* bench_counters.c: see bench_counters.h. */
#include "bench_counters.h"

#include <errno.h>
#include <glob.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FILES = sizeof(((counters *)0)->files[0]) / sizeof(int) };

typedef struct event {
    const char *name;
    uint32_t type;
    uint64_t config;
} event;

static const event hardware[] = {
    {"cycles", PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES},
    {"instructions", PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS},
    {"llc_misses", PERF_TYPE_HARDWARE, PERF_COUNT_HW_CACHE_MISSES},
};
static const event software[] = {
    {"task_clock_ns", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK},
    {"page_faults", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS},
    {"context_switches", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CONTEXT_SWITCHES},
    {"cpu_migrations", PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_MIGRATIONS},
};

static int open_event(uint32_t type, uint64_t config, int cpu)
{
    struct perf_event_attr attributes = {.type = type, .size = sizeof(attributes), .config = config};
    if (cpu < 0) {
        attributes.inherit = 1;
        attributes.exclude_kernel = type == PERF_TYPE_HARDWARE;
        attributes.exclude_hv = type == PERF_TYPE_HARDWARE;
    }
    return (int)syscall(SYS_perf_event_open, &attributes, cpu < 0 ? 0 : -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
}

/* A new counter's place, all its files closed; NULL when there is no room. */
static int *add(counters *c, const char *name, double scale)
{
    if (c->n == COUNTERS_MAX)
        return NULL;
    int *const files = c->files[c->n];
    for (int i = 0; i < FILES; i++)
        files[i] = -1;
    c->names[c->n] = name;
    c->scale[c->n++] = scale;
    return files;
}

static int add_events(counters *c, const event *events, size_t n)
{
    int reason = 0, opened = 0;
    for (size_t i = 0; i < n; i++) {
        const int file = open_event(events[i].type, events[i].config, -1);
        int *const files = file >= 0 ? add(c, events[i].name, 1) : NULL;
        if (files)
            files[0] = file;
        else
            reason = errno;
        opened += files != NULL;
    }
    if (!opened)
        errno = reason;
    return opened;
}

/* ---- DRAM: Intel's memory controllers, cas_count_read and _write, each count a line of 64 bytes -------------------- */

static int read_text(const char *folder, const char *name, char *text, size_t size)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *const file = fopen(path, "r");
    if (!file)
        return -1;
    const int found = fgets(text, (int)size, file) ? 0 : -1;
    fclose(file);
    return found;
}

static int open_memory_controller(const char *folder, const char *event_name)
{
    char text[128];
    unsigned type = 0, selector = 0, mask = 0;
    if (read_text(folder, "type", text, sizeof(text)) != 0 || sscanf(text, "%u", &type) != 1 ||
        read_text(folder, event_name, text, sizeof(text)) != 0 ||
        sscanf(text, "event=%x,umask=%x", &selector, &mask) != 2)
        return -1;
    const int cpu = read_text(folder, "cpumask", text, sizeof(text)) == 0 ? atoi(text) : 0;
    return open_event(type, selector | (uint64_t)mask << 8, cpu);
}

static void add_dram(counters *c, const char *name, const char *event_name)
{
    glob_t found;
    int *files = NULL, n = 0;
    if (glob("/sys/bus/event_source/devices/uncore_imc_[0-9]*", 0, NULL, &found) != 0)
        return;
    for (size_t i = 0; i < found.gl_pathc && n < FILES; i++) {
        const int file = open_memory_controller(found.gl_pathv[i], event_name);
        if (file < 0)
            continue;
        if (!files && !(files = add(c, name, 64))) {
            close(file);
            break;
        }
        files[n++] = file;
    }
    globfree(&found);
}

/* ------------------------------------------------------------------------------------------------------------------ */

void counters_open(counters *c)
{
    memset(c, 0, sizeof(*c));
    if (add_events(c, hardware, sizeof(hardware) / sizeof(hardware[0])) > 0) {
        snprintf(c->kind, sizeof(c->kind), "hardware");
    } else {
        const char *const reason = errno == ENOENT || errno == EOPNOTSUPP ? "the machine exposes no hardware counters"
                                                                         : strerror(errno);
        if (add_events(c, software, sizeof(software) / sizeof(software[0])) > 0)
            snprintf(c->kind, sizeof(c->kind), "software (%s)", reason);
        else
            snprintf(c->kind, sizeof(c->kind), "none (%s)", strerror(errno));
    }
    add_dram(c, "dram_read_bytes", "events/cas_count_read");
    add_dram(c, "dram_write_bytes", "events/cas_count_write");
}

void counters_close(counters *c)
{
    for (size_t i = 0; i < c->n; i++)
        for (int j = 0; j < FILES && c->files[i][j] >= 0; j++)
            close(c->files[i][j]);
    c->n = 0;
}

void counters_read(const counters *c, double *values)
{
    for (size_t i = 0; i < c->n; i++) {
        values[i] = 0;
        for (int j = 0; j < FILES && c->files[i][j] >= 0; j++) {
            uint64_t count = 0;
            if (read(c->files[i][j], &count, sizeof(count)) == sizeof(count))
                values[i] += (double)count * c->scale[i];
        }
    }
}
