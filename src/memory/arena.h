/* An arena: memory of one NUMA node, taken from the system in large areas and handed out in pieces. Pieces come back one
 * by one; whole pages that no piece uses any more go back to the system at once, empty areas as a whole. */
#ifndef DP_MEMORY_ARENA_H
#define DP_MEMORY_ARENA_H

#include <stddef.h>

#include "doublep/doublep.h"

typedef struct dp_range {
    char *base;
    size_t bytes;
} dp_range;

typedef struct dp_arena {
    const dp_runtime *runtime;
    int node;
    dp_range *areas;
    size_t n_areas, areas_capacity;
    dp_range *gaps; /* what is not handed out, by address; neighbours within an area are one gap */
    size_t n_gaps, gaps_capacity;
    size_t n_pieces;
    size_t pages_bytes; /* in pages that pieces lie in: what the arena occupies */
} dp_arena;

void dp_arena_init(dp_arena *arena, const dp_runtime *runtime, int node);
void dp_arena_free(dp_arena *arena);

/* 64-byte aligned, contents indeterminate; NULL where there is no memory. Not thread-safe. */
void *dp_arena_alloc(dp_arena *arena, size_t bytes);

/* Takes a piece back, with the size that it was asked for in. */
void dp_arena_release(dp_arena *arena, void *piece, size_t bytes);

#endif
