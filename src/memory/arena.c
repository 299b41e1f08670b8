/* Pieces go into the smallest gap that holds them, so that small ones do not break up the large gaps. */
#include "memory/arena.h"

#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "memory/budget.h"
#include "memory/pages.h"

/* Large, so that odd sizes leave few gaps; pages that were not handed out yet are address space only. */
static const size_t area_bytes = (size_t)64 << 20;

dp_arena *dp_arena_create(dp_runtime *runtime, int node)
{
    dp_arena *const arena = dp_heap_resize(runtime, NULL, 0, sizeof *arena);
    if (!arena) return NULL;
    arena->runtime = runtime;
    arena->node = node;
    atomic_init(&arena->n_users, 1);
    pthread_mutex_init(&arena->lock, NULL);
    return arena;
}

dp_arena *dp_arena_join(dp_arena *arena)
{
    atomic_fetch_add(&arena->n_users, 1);
    return arena;
}

void dp_arena_leave(dp_arena *arena)
{
    if (!arena || atomic_fetch_sub(&arena->n_users, 1) > 1) return;
    dp_runtime *const rt = arena->runtime;
    for (size_t i = 0; i < arena->n_areas; i++) dp_pages_unmap(arena->areas[i].base, arena->areas[i].bytes);
    dp_budget_give(rt, arena->pages_bytes);
    dp_heap_resize(rt, arena->areas, arena->areas_capacity * sizeof *arena->areas, 0);
    dp_heap_resize(rt, arena->gaps, arena->gaps_capacity * sizeof *arena->gaps, 0);
    pthread_mutex_destroy(&arena->lock);
    dp_heap_resize(rt, arena, sizeof *arena, 0);
}

bool dp_arena_has_others(const dp_arena *arena)
{
    return atomic_load(&arena->n_users) > 1;
}

size_t dp_arena_slack(dp_arena *arena)
{
    pthread_mutex_lock(&arena->lock);
    const size_t slack = arena->pages_bytes - arena->piece_bytes + sizeof *arena +
                         arena->areas_capacity * sizeof *arena->areas + arena->gaps_capacity * sizeof *arena->gaps;
    pthread_mutex_unlock(&arena->lock);
    return slack;
}

/* The whole pages inside a range. */
static dp_range whole_pages(const dp_arena *arena, dp_range range)
{
    const uintptr_t page = dp_page_bytes(arena->runtime, area_bytes);
    const uintptr_t first = ((uintptr_t)range.base + page - 1) / page * page;
    const uintptr_t last = ((uintptr_t)range.base + range.bytes) / page * page;
    return (dp_range){.base = range.base + (first - (uintptr_t)range.base), .bytes = last > first ? last - first : 0};
}

/* ---- Arrays of ranges ---- */

static bool reserve(dp_runtime *rt, dp_range **ranges, size_t *capacity, size_t needed)
{
    if (needed <= *capacity) return true;
    const size_t larger = needed > 2 * *capacity ? needed : 2 * *capacity;
    dp_range *const moved = dp_heap_resize(rt, *ranges, *capacity * sizeof *moved, larger * sizeof *moved);
    if (!moved) return false;
    *ranges = moved;
    *capacity = larger;
    return true;
}

static void insert(dp_range *ranges, size_t *n, size_t at, dp_range range)
{
    memmove(ranges + at + 1, ranges + at, (*n - at) * sizeof *ranges);
    ranges[at] = range;
    ++*n;
}

static void erase(dp_range *ranges, size_t *n, size_t at)
{
    --*n;
    memmove(ranges + at, ranges + at + 1, (*n - at) * sizeof *ranges);
}

/* Number of ranges, in order of address, that begin before an address. */
static size_t count_before(const dp_range *ranges, size_t n, const char *address)
{
    size_t low = 0, high = n;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if ((uintptr_t)ranges[middle].base < (uintptr_t)address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* ---- Pieces ---- */

/* A new area, all of it a gap; its index in gaps, or SIZE_MAX where there is no memory. */
static size_t add_area(dp_arena *arena, size_t bytes)
{
    if (!reserve(arena->runtime, &arena->areas, &arena->areas_capacity, arena->n_areas + 1)) return SIZE_MAX;
    const size_t rounded = dp_pages_round(arena->runtime, bytes > area_bytes ? bytes : area_bytes);
    char *const base = rounded ? dp_pages_map(arena->runtime, rounded, arena->node) : NULL;
    if (!base) return SIZE_MAX;
    const dp_range area = {.base = base, .bytes = rounded};
    insert(arena->areas, &arena->n_areas, count_before(arena->areas, arena->n_areas, base), area);
    const size_t gap = count_before(arena->gaps, arena->n_gaps, base);
    insert(arena->gaps, &arena->n_gaps, gap, area);
    return gap;
}

/* Before each piece there is at most one gap, and one at the end of each area: with room for so many (a new area and a piece
 * on its way back included), taking a piece back cannot fail. */
static bool reserve_gaps(dp_arena *arena)
{
    return reserve(arena->runtime, &arena->gaps, &arena->gaps_capacity, arena->n_pieces + arena->n_areas + 3);
}

/* A piece cut from the front of the spare; NULL where that is too small. */
static void *alloc_spare(dp_arena *arena, size_t bytes)
{
    if (arena->spare.bytes < bytes || !reserve_gaps(arena)) return NULL;
    char *const piece = arena->spare.base;
    arena->spare = (dp_range){.base = piece + bytes, .bytes = arena->spare.bytes - bytes};
    if (arena->spare.bytes) arena->n_pieces++;
    arena->piece_bytes += bytes;
    return piece;
}

static void *alloc_locked(dp_arena *arena, size_t bytes)
{
    if (!reserve_gaps(arena)) return NULL;
    size_t i = SIZE_MAX;
    for (size_t g = 0; g < arena->n_gaps; g++)
        if (arena->gaps[g].bytes >= bytes && (i == SIZE_MAX || arena->gaps[g].bytes < arena->gaps[i].bytes)) i = g;
    if (i == SIZE_MAX) i = add_area(arena, bytes);
    if (i == SIZE_MAX) return NULL;
    dp_range *const gap = &arena->gaps[i];
    char *const piece = gap->base;
    const dp_range rest = {.base = piece + bytes, .bytes = gap->bytes - bytes};
    const size_t pages = whole_pages(arena, *gap).bytes - whole_pages(arena, rest).bytes;
    if (!dp_budget_take(arena->runtime, pages)) return NULL;
    arena->pages_bytes += pages;
    *gap = rest;
    if (!gap->bytes) erase(arena->gaps, &arena->n_gaps, i);
    arena->n_pieces++;
    arena->piece_bytes += bytes;
    return piece;
}

void *dp_arena_alloc(dp_arena *arena, size_t bytes)
{
    if (!bytes || bytes > SIZE_MAX / 2) return NULL;
    pthread_mutex_lock(&arena->lock);
    const size_t rounded = dp_arena_piece_bytes(bytes);
    void *const spare = alloc_spare(arena, rounded), *const piece = spare ? spare : alloc_locked(arena, rounded);
    pthread_mutex_unlock(&arena->lock);
    return piece;
}

/* Pages that an area takes from the system. */
static size_t area_pages(const dp_range *area)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (area->bytes + page - 1) / page * page;
}

bool dp_arena_adopt(dp_arena *arena, void *pages, size_t bytes, size_t n_pieces)
{
    dp_runtime *const rt = arena->runtime;
    const dp_range area = {.base = pages, .bytes = bytes};
    pthread_mutex_lock(&arena->lock);
    const bool ok = reserve(rt, &arena->areas, &arena->areas_capacity, arena->n_areas + 1) &&
                    reserve(rt, &arena->gaps, &arena->gaps_capacity, arena->n_pieces + n_pieces + arena->n_areas + 3) &&
                    dp_budget_take(rt, area_pages(&area));
    if (ok) {
        insert(arena->areas, &arena->n_areas, count_before(arena->areas, arena->n_areas, area.base), area);
        arena->n_pieces += n_pieces;
        arena->piece_bytes += bytes;
        arena->pages_bytes += area_pages(&area);
    }
    pthread_mutex_unlock(&arena->lock);
    return ok;
}

/* Makes a range a gap, one with its neighbours in the area; returns its index. */
static size_t add_gap(dp_arena *arena, dp_range area, dp_range freed)
{
    size_t i = count_before(arena->gaps, arena->n_gaps, freed.base);
    insert(arena->gaps, &arena->n_gaps, i, freed);
    dp_range *const gaps = arena->gaps;
    size_t were_free = 0; /* bytes of whole pages */
    if (i + 1 < arena->n_gaps && gaps[i].base + gaps[i].bytes == gaps[i + 1].base &&
        gaps[i + 1].base < area.base + area.bytes) {
        were_free += whole_pages(arena, gaps[i + 1]).bytes;
        gaps[i].bytes += gaps[i + 1].bytes;
        erase(gaps, &arena->n_gaps, i + 1);
    }
    if (i > 0 && gaps[i - 1].base + gaps[i - 1].bytes == gaps[i].base && gaps[i].base > area.base) {
        were_free += whole_pages(arena, gaps[i - 1]).bytes;
        gaps[i - 1].bytes += gaps[i].bytes;
        erase(gaps, &arena->n_gaps, i--);
    }
    const size_t pages = whole_pages(arena, gaps[i]).bytes - were_free;
    arena->pages_bytes -= pages;
    dp_budget_give(arena->runtime, pages);
    return i;
}

/* Of a gap's pages those were in use until now that the freed range lay in. */
static void discard(const dp_arena *arena, dp_range gap, dp_range freed)
{
    const size_t page = dp_page_bytes(arena->runtime, area_bytes);
    const dp_range whole = whole_pages(arena, gap);
    const uintptr_t base = (uintptr_t)whole.base, from = (uintptr_t)freed.base, to = from + freed.bytes;
    const size_t first = from > base ? (from - base) / page * page : 0;
    size_t last = to > base ? (to - base + page - 1) / page * page : 0;
    if (last > whole.bytes) last = whole.bytes;
    if (first < last) dp_pages_discard(whole.base + first, last - first);
}

static void release_locked(dp_arena *arena, dp_range freed)
{
    const size_t area_index = count_before(arena->areas, arena->n_areas, freed.base + 1) - 1;
    const dp_range area = arena->areas[area_index];
    const size_t i = add_gap(arena, area, freed);
    const dp_range gap = arena->gaps[i];
    arena->n_pieces--;
    arena->piece_bytes -= freed.bytes;
    if (gap.bytes == area.bytes) {
        const size_t rest = area_pages(&area) - whole_pages(arena, area).bytes; /* of an adopted one: half pages */
        arena->pages_bytes -= rest;
        dp_budget_give(arena->runtime, rest);
        dp_pages_unmap(area.base, area.bytes);
        erase(arena->gaps, &arena->n_gaps, i);
        erase(arena->areas, &arena->n_areas, area_index);
    } else {
        discard(arena, gap, freed);
    }
}

void dp_arena_release(dp_arena *arena, void *piece, size_t bytes)
{
    if (!piece) return;
    pthread_mutex_lock(&arena->lock);
    release_locked(arena, (dp_range){.base = piece, .bytes = dp_arena_piece_bytes(bytes)});
    pthread_mutex_unlock(&arena->lock);
}

/* Writes to each page. */
static void touch(char *base, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < bytes; i += page) ((volatile char *)base)[i] = 0;
}

bool dp_arena_has_spare(dp_arena *arena, size_t bytes)
{
    pthread_mutex_lock(&arena->lock);
    const bool enough = arena->spare.bytes >= bytes;
    pthread_mutex_unlock(&arena->lock);
    return enough;
}

bool dp_arena_reserve(dp_arena *arena, size_t bytes)
{
    if (dp_arena_has_spare(arena, bytes)) return true;
    pthread_mutex_lock(&arena->lock);
    char *const base = alloc_locked(arena, bytes);
    pthread_mutex_unlock(&arena->lock);
    if (!base) return false;
    touch(base, bytes); /* which takes long: a piece like others meanwhile */
    pthread_mutex_lock(&arena->lock);
    const dp_range fresh = {.base = base, .bytes = bytes}, had = arena->spare;
    const bool more = had.bytes > bytes; /* a fork has reserved them in the meantime */
    const dp_range other = more ? fresh : had;
    arena->spare = more ? had : fresh;
    arena->piece_bytes -= bytes;
    if (other.bytes) {
        arena->piece_bytes += other.bytes; /* release_locked() takes them off again */
        release_locked(arena, other);
    }
    pthread_mutex_unlock(&arena->lock);
    return true;
}
