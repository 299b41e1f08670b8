/* Work buffers of a call. The runtime keeps the idle ones in a fixed set of slots that are exchanged atomically, so a
 * call takes one without a lock and, once a call of its size was made, without allocation: a buffer serves calls of a
 * quarter of its size and more. Those that were of no use for DP_SCRATCH_CALLS calls are given back. */
#ifndef DP_MEMORY_SCRATCH_H
#define DP_MEMORY_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

#include "doublep/doublep.h"

enum { DP_SCRATCH_CALLS = 1024 };

typedef struct dp_scratch {
    char *base;
    size_t bytes; /* capacity */
    size_t used;
    uint64_t last_call; /* of the runtime's calls the last that it fitted well */
} dp_scratch;

/* A buffer of at least `bytes`; NULL where there is no memory. Pair with dp_scratch_release. */
dp_scratch *dp_scratch_acquire(dp_runtime *runtime, size_t bytes);
void dp_scratch_release(dp_runtime *runtime, dp_scratch *scratch);
void dp_scratch_free_idle(dp_runtime *runtime);

/* Carves `bytes` from the buffer, 64-byte aligned; contents are indeterminate. With scratch->base = NULL nothing is
 * carved, but used grows all the same: run the carving once on an empty scratch to learn the size. */
void *dp_scratch_take(dp_scratch *scratch, size_t bytes);

#endif
