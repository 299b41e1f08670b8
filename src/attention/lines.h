/* Lines of the cache, to be fetched before they are needed: what the hardware's prefetcher does not foresee. */
#ifndef DP_ATTENTION_LINES_H
#define DP_ATTENTION_LINES_H

#include <stddef.h>
#include <stdint.h>

enum { DP_LINE = 64 };

typedef struct dp_lines {
    const void *first;
    size_t n;
} dp_lines;

/* All that have a byte of it. */
static inline dp_lines dp_lines_of(const void *x, size_t bytes)
{
    const uintptr_t begin = (uintptr_t)x & ~(uintptr_t)(DP_LINE - 1); /* before x */
    return (dp_lines){(const void *)begin, bytes ? ((uintptr_t)x + bytes - begin + DP_LINE - 1) / DP_LINE : 0};
}

static inline void dp_prefetch(dp_lines l)
{
    for (size_t i = 0; i < l.n; i++) __builtin_prefetch((const void *)((uintptr_t)l.first + i * DP_LINE), 0, 2);
}

#endif
