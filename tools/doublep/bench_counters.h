/* bench_counters.h: what the processor counts, by perf_event_open: cycles, instructions, LLC misses and DRAM bytes where
 * the machine has them, what the kernel counts where not. Counts are of the thread that opened them and of all that it
 * creates afterwards; DRAM bytes are of the whole machine. */
#ifndef DOUBLEP_TOOL_BENCH_COUNTERS_H
#define DOUBLEP_TOOL_BENCH_COUNTERS_H

#include <stddef.h>
#include <stdint.h>

enum { COUNTERS_MAX = 8 };

typedef struct counters {
    size_t n;
    const char *names[COUNTERS_MAX];
    char kind[128]; /* "hardware", or "software" and why */
    double scale[COUNTERS_MAX];
    int files[COUNTERS_MAX][32]; /* -1: none; DRAM counters have one per memory controller */
} counters;

/* Call before any thread is created. Never fails: n may be 0. */
void counters_open(counters *c);
void counters_close(counters *c);

/* Totals so far, [n]. */
void counters_read(const counters *c, double *values);

#endif
