/* The memory that a runtime and its sequences hold, counted to the byte against the runtime's limit: pages (tokens, index,
 * work buffers) and tables on the heap. Not counted are the runtime itself, and what OpenMP, oneDNN and hwloc take. */
#ifndef DP_MEMORY_BUDGET_H
#define DP_MEMORY_BUDGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "doublep/doublep.h"

typedef struct dp_budget {
    size_t limit; /* 0: none */
    atomic_size_t used, peak;
} dp_budget;

/* Counts bytes that are about to be allocated. Where the limit is in the way, idle work buffers are given up first;
 * false, and nothing counted, where that is not enough. */
bool dp_budget_take(dp_runtime *runtime, size_t bytes);
void dp_budget_give(dp_runtime *runtime, size_t bytes);

/* Heap memory, counted: realloc(p, bytes), from NULL with old_bytes = 0, and free for bytes = 0. What is new is zeroed.
 * NULL where there is no memory; p is as it was then. */
void *dp_heap_resize(dp_runtime *runtime, void *p, size_t old_bytes, size_t bytes);

/* dp_fail with DP_ERR_NO_MEMORY, where the latest allocation of this thread failed: the message says besides whether it
 * was the limit that refused, and by how much. */
dp_status dp_no_memory(dp_runtime *runtime, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
