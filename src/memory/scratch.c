/* Lock-free slots of idle work buffers. */
#include "memory/scratch.h"

#include "memory/budget.h"
#include "memory/pages.h"
#include "runtime/runtime.h"

static void free_base(dp_runtime *rt, dp_scratch *scratch)
{
    dp_pages_free(rt, scratch->base, scratch->bytes);
    atomic_fetch_sub(&rt->scratch_bytes, scratch->bytes);
    *scratch = (dp_scratch){0};
}

static void scratch_free(dp_runtime *rt, dp_scratch *scratch)
{
    if (!scratch) return;
    free_base(rt, scratch);
    dp_heap_resize(rt, scratch, sizeof *scratch, 0);
    atomic_fetch_sub(&rt->scratch_bytes, sizeof *scratch);
}

/* Takes any idle buffer, a large enough one if there is one at hand. */
static dp_scratch *take_idle(dp_runtime *rt, size_t bytes)
{
    dp_scratch *small = NULL;
    for (int i = 0; i < DP_SCRATCH_SLOTS; i++) {
        dp_scratch *const found = atomic_exchange(&rt->scratch[i], NULL);
        if (!found) continue;
        if (found->bytes >= bytes) {
            if (small) dp_scratch_release(rt, small);
            return found;
        }
        if (small) dp_scratch_release(rt, small);
        small = found;
    }
    return small;
}

dp_scratch *dp_scratch_acquire(dp_runtime *rt, size_t bytes)
{
    dp_scratch *scratch = take_idle(rt, bytes);
    if (scratch && scratch->bytes >= bytes) {
        scratch->used = 0;
        return scratch;
    }
    if (!scratch) {
        scratch = dp_heap_resize(rt, NULL, 0, sizeof *scratch);
        if (!scratch) return NULL;
        atomic_fetch_add(&rt->scratch_bytes, sizeof *scratch);
    }
    free_base(rt, scratch);                                       /* first, so that the limit does not count both */
    const size_t rounded = dp_pages_round(rt, bytes + bytes / 4); /* contexts grow: leave room for the next calls */
    char *const base = rounded ? dp_pages_alloc(rt, rounded, DP_NODE_ANY) : NULL;
    if (!base) {
        dp_scratch_release(rt, scratch);
        return NULL;
    }
    atomic_fetch_add(&rt->scratch_bytes, rounded);
    *scratch = (dp_scratch){.base = base, .bytes = rounded};
    return scratch;
}

void dp_scratch_release(dp_runtime *rt, dp_scratch *scratch)
{
    for (int i = 0; i < DP_SCRATCH_SLOTS; i++) {
        dp_scratch *empty = NULL;
        if (atomic_compare_exchange_strong(&rt->scratch[i], &empty, scratch)) return;
    }
    scratch_free(rt, scratch);
}

void dp_scratch_free_idle(dp_runtime *rt)
{
    for (int i = 0; i < DP_SCRATCH_SLOTS; i++) scratch_free(rt, atomic_exchange(&rt->scratch[i], NULL));
}

void *dp_scratch_take(dp_scratch *scratch, size_t bytes)
{
    void *const piece = scratch->base ? scratch->base + scratch->used : NULL;
    scratch->used += (bytes + 63) & ~(size_t)63;
    return piece;
}
