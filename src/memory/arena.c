/* Pieces go into the smallest gap that holds them, so that small ones do not break up the large gaps. */
#include "memory/arena.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "memory/pages.h"

/* Large, so that odd sizes leave few gaps; pages that were not handed out yet are address space only. */
static const size_t area_bytes = (size_t)64 << 20;

void dp_arena_init(dp_arena *arena, const dp_runtime *runtime, int node)
{
    *arena = (dp_arena){.runtime = runtime, .node = node};
}

void dp_arena_free(dp_arena *arena)
{
    for (size_t i = 0; i < arena->n_areas; i++) dp_pages_free(arena->areas[i].base, arena->areas[i].bytes);
    free(arena->areas);
    free(arena->gaps);
    *arena = (dp_arena){.runtime = arena->runtime, .node = arena->node};
}

static size_t round64(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
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

static bool reserve(dp_range **ranges, size_t *capacity, size_t needed)
{
    if (needed <= *capacity) return true;
    const size_t larger = needed > 2 * *capacity ? needed : 2 * *capacity;
    dp_range *const moved = realloc(*ranges, larger * sizeof *moved);
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
    if (!reserve(&arena->areas, &arena->areas_capacity, arena->n_areas + 1)) return SIZE_MAX;
    const size_t rounded = dp_pages_round(arena->runtime, bytes > area_bytes ? bytes : area_bytes);
    char *const base = rounded ? dp_pages_alloc(arena->runtime, rounded, arena->node) : NULL;
    if (!base) return SIZE_MAX;
    const dp_range area = {.base = base, .bytes = rounded};
    insert(arena->areas, &arena->n_areas, count_before(arena->areas, arena->n_areas, base), area);
    const size_t gap = count_before(arena->gaps, arena->n_gaps, base);
    insert(arena->gaps, &arena->n_gaps, gap, area);
    return gap;
}

void *dp_arena_alloc(dp_arena *arena, size_t bytes)
{
    if (!bytes || bytes > SIZE_MAX / 2) return NULL;
    bytes = round64(bytes);
    /* Before each piece there is at most one gap, and one at the end of each area: with room for so many (a new area and
     * a piece on its way back included), taking a piece back cannot fail. */
    if (!reserve(&arena->gaps, &arena->gaps_capacity, arena->n_pieces + arena->n_areas + 3)) return NULL;
    size_t i = SIZE_MAX;
    for (size_t g = 0; g < arena->n_gaps; g++)
        if (arena->gaps[g].bytes >= bytes && (i == SIZE_MAX || arena->gaps[g].bytes < arena->gaps[i].bytes)) i = g;
    if (i == SIZE_MAX) i = add_area(arena, bytes);
    if (i == SIZE_MAX) return NULL;
    dp_range *const gap = &arena->gaps[i];
    char *const piece = gap->base;
    arena->pages_bytes += whole_pages(arena, *gap).bytes;
    *gap = (dp_range){.base = gap->base + bytes, .bytes = gap->bytes - bytes};
    arena->pages_bytes -= whole_pages(arena, *gap).bytes;
    if (!gap->bytes) erase(arena->gaps, &arena->n_gaps, i);
    arena->n_pieces++;
    return piece;
}

void dp_arena_release(dp_arena *arena, void *piece, size_t bytes)
{
    if (!piece) return;
    const dp_range freed = {.base = piece, .bytes = round64(bytes)};
    const size_t area_index = count_before(arena->areas, arena->n_areas, freed.base + 1) - 1;
    const dp_range area = arena->areas[area_index];
    const size_t i = count_before(arena->gaps, arena->n_gaps, freed.base);
    insert(arena->gaps, &arena->n_gaps, i, freed);
    arena->n_pieces--;
    dp_range *gap = &arena->gaps[i];
    size_t whole_before = 0;
    if (i + 1 < arena->n_gaps && gap->base + gap->bytes == gap[1].base && gap[1].base < area.base + area.bytes) {
        whole_before += whole_pages(arena, gap[1]).bytes;
        gap->bytes += gap[1].bytes;
        erase(arena->gaps, &arena->n_gaps, i + 1);
    }
    if (i > 0 && gap[-1].base + gap[-1].bytes == gap->base && gap->base > area.base) {
        whole_before += whole_pages(arena, gap[-1]).bytes;
        gap[-1].bytes += gap->bytes;
        erase(arena->gaps, &arena->n_gaps, i);
        gap--;
    }
    arena->pages_bytes -= whole_pages(arena, *gap).bytes - whole_before;
    if (gap->bytes == area.bytes) {
        dp_pages_free(area.base, area.bytes);
        erase(arena->gaps, &arena->n_gaps, (size_t)(gap - arena->gaps));
        erase(arena->areas, &arena->n_areas, area_index);
        return;
    }
    /* Of the gap's pages those were in use until now that the piece lay in. */
    const uintptr_t page = dp_page_bytes(arena->runtime, area_bytes);
    const dp_range whole = whole_pages(arena, *gap);
    const size_t lead = (uintptr_t)freed.base % page;
    char *first = freed.base - lead, *last = freed.base + freed.bytes;
    last += (page - (uintptr_t)last % page) % page;
    if ((uintptr_t)first < (uintptr_t)whole.base) first = whole.base;
    if ((uintptr_t)last > (uintptr_t)(whole.base + whole.bytes)) last = whole.base + whole.bytes;
    if ((uintptr_t)first < (uintptr_t)last) dp_pages_discard(first, (size_t)(last - first));
}
