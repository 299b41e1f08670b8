/* An arena: memory of one sequence on one NUMA node, taken from the system in large areas and handed out in pieces that
 * live as long as the arena. */
#ifndef DP_MEMORY_ARENA_H
#define DP_MEMORY_ARENA_H

#include <stddef.h>

#include "doublep/doublep.h"

typedef struct dp_area {
    char *base;
    size_t bytes, used;
    size_t marked; /* used at the mark */
} dp_area;

typedef struct dp_arena {
    const dp_runtime *runtime;
    int node;
    dp_area *areas;
    size_t n_areas, areas_capacity;
    size_t marked_areas;
} dp_arena;

void dp_arena_init(dp_arena *arena, const dp_runtime *runtime, int node);
void dp_arena_free(dp_arena *arena);

/* 64-byte aligned; NULL where there is no memory. Not thread-safe. */
void *dp_arena_alloc(dp_arena *arena, size_t bytes);

/* Remembers the present state; rewind gives back all pieces that were handed out since. */
void dp_arena_mark(dp_arena *arena);
void dp_arena_rewind(dp_arena *arena);

/* Bytes in the pages that pieces were handed out from: what the arena occupies. */
size_t dp_arena_touched(const dp_arena *arena);

#endif
