/* An arena: memory of one NUMA node, taken from the system in large areas and handed out in pieces. Pieces come back one
 * by one; whole pages that no piece uses any more go back to the system at once, empty areas as a whole. A sequence and
 * its forks share their arenas: all functions may be called from several threads at once. */
#ifndef DP_MEMORY_ARENA_H
#define DP_MEMORY_ARENA_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "doublep/doublep.h"

typedef struct dp_range {
    char *base;
    size_t bytes;
} dp_range;

typedef struct dp_arena {
    dp_runtime *runtime;
    int node;
    atomic_size_t n_users;
    pthread_mutex_t lock; /* of all below */
    dp_range *areas;
    size_t n_areas, areas_capacity;
    dp_range *gaps; /* what is not handed out, by address; neighbours within an area are one gap */
    size_t n_gaps, gaps_capacity;
    dp_range spare; /* a piece that the next ones are cut from, on pages that are there already; empty: none */
    size_t n_pieces, piece_bytes; /* the spare is one of them, of no bytes */
    size_t pages_bytes; /* in pages that pieces lie in: what the arena occupies */
} dp_arena;

/* An arena with one user, NULL where there is no memory; another user; one less. The last one's leaving frees what is
 * in it. */
dp_arena *dp_arena_create(dp_runtime *runtime, int node);
dp_arena *dp_arena_join(dp_arena *arena);
void dp_arena_leave(dp_arena *arena); /* NULL is allowed */
bool dp_arena_has_others(const dp_arena *arena); /* users beside the caller */

/* What pieces are aligned to: rows of 256 bytes, from the first on, lie within pages of 4 KiB. A row on two of them
 * confuses the hardware's prefetcher (keys, bf16, d 128, two threads: 29 GB/s, and 27 with rows that begin 64 or 128 bytes
 * off). */
enum { DP_ARENA_ALIGN = 256 };

/* What a piece of so many bytes takes. */
static inline size_t dp_arena_piece_bytes(size_t bytes)
{
    return (bytes + DP_ARENA_ALIGN - 1) & ~(size_t)(DP_ARENA_ALIGN - 1);
}

/* Contents indeterminate; NULL where there is no memory. */
void *dp_arena_alloc(dp_arena *arena, size_t bytes);

/* Has the system provide the memory of the next pieces, of so many bytes together (as dp_arena_piece_bytes() says), ahead
 * of time: they take no page that was not touched yet. False where there is no memory; nothing has changed then. And
 * whether there is so much already. */
bool dp_arena_reserve(dp_arena *arena, size_t bytes);
bool dp_arena_has_spare(dp_arena *arena, size_t bytes);

/* Makes pages that were mapped elsewhere an area, all of it handed out in n_pieces whose sizes are what
 * dp_arena_piece_bytes() says: they come back one by one as the others do. False where there is no memory; the pages are
 * the caller's then. */
bool dp_arena_adopt(dp_arena *arena, void *pages, size_t bytes, size_t n_pieces);

/* Takes a piece back, with the size that it was asked for in. */
void dp_arena_release(dp_arena *arena, void *piece, size_t bytes);

/* Bytes that the arena takes beyond its pieces: of its pages, and of its tables. */
size_t dp_arena_slack(dp_arena *arena);

#endif
