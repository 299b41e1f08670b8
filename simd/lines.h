/* Lines that are fetched into the cache while a kernel works on others: a few at a time, so that it need not wait for memory
 * to take its requests. */
#ifndef DP_SIMD_LINES_H
#define DP_SIMD_LINES_H

#include <stddef.h>
#include <stdint.h>

#include "inline.h"

typedef struct lines {
    uintptr_t next; /* a number: the address need not be anyone's */
    size_t left;
} lines;

DP_INLINE void fetch_lines(lines *l, size_t n)
{
    for (; n && l->left; n--, l->left--, l->next += 64) __builtin_prefetch((const void *)l->next, 0, 2);
}

#endif
