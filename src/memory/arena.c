/* Areas are filled first fit. */
#include "memory/arena.h"

#include <stdint.h>
#include <stdlib.h>

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
    *arena = (dp_arena){.runtime = arena->runtime, .node = arena->node};
}

static dp_area *add_area(dp_arena *arena, size_t bytes)
{
    if (arena->n_areas == arena->areas_capacity) {
        const size_t capacity = arena->areas_capacity ? 2 * arena->areas_capacity : 8;
        dp_area *const areas = realloc(arena->areas, capacity * sizeof *areas);
        if (!areas) return NULL;
        arena->areas = areas;
        arena->areas_capacity = capacity;
    }
    const size_t rounded = dp_pages_round(arena->runtime, bytes > area_bytes ? bytes : area_bytes);
    char *const base = rounded ? dp_pages_alloc(arena->runtime, rounded, arena->node) : NULL;
    if (!base) return NULL;
    dp_area *const area = &arena->areas[arena->n_areas++];
    *area = (dp_area){.base = base, .bytes = rounded};
    return area;
}

void *dp_arena_alloc(dp_arena *arena, size_t bytes)
{
    if (bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + 63) & ~(size_t)63;
    dp_area *area = NULL;
    for (size_t i = 0; i < arena->n_areas && !area; i++)
        if (arena->areas[i].bytes - arena->areas[i].used >= bytes) area = &arena->areas[i];
    if (!area) area = add_area(arena, bytes);
    if (!area) return NULL;
    void *const piece = area->base + area->used;
    area->used += bytes;
    return piece;
}

void dp_arena_mark(dp_arena *arena)
{
    arena->marked_areas = arena->n_areas;
    for (size_t i = 0; i < arena->n_areas; i++) arena->areas[i].marked = arena->areas[i].used;
}

void dp_arena_rewind(dp_arena *arena)
{
    for (size_t i = arena->marked_areas; i < arena->n_areas; i++)
        dp_pages_free(arena->areas[i].base, arena->areas[i].bytes);
    arena->n_areas = arena->marked_areas;
    for (size_t i = 0; i < arena->n_areas; i++) arena->areas[i].used = arena->areas[i].marked;
}

size_t dp_arena_touched(const dp_arena *arena)
{
    size_t touched = 0;
    for (size_t i = 0; i < arena->n_areas; i++)
        touched += arena->areas[i].used ? dp_pages_round(arena->runtime, arena->areas[i].used) : 0;
    return touched;
}
