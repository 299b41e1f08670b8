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

/* Frees the buffers that were of no use for long. */
static void free_stale(dp_runtime *rt, uint64_t call)
{
    for (int i = 0; i < DP_SCRATCH_SLOTS; i++) {
        dp_scratch *const found = atomic_exchange(&rt->scratch[i], NULL);
        if (found && call > found->last_call + DP_SCRATCH_CALLS)
            scratch_free(rt, found);
        else if (found)
            dp_scratch_release(rt, found);
    }
}

/* Bytes that a new buffer gets: contexts grow, so there is room for the next calls; 0 for more than there can be. */
static size_t with_room(const dp_runtime *rt, size_t bytes)
{
    return dp_pages_round(rt, bytes + bytes / 4);
}

/* How well a buffer fits: 0 none, 1 too small, 2 far too large, 3 well. */
static int fit(const dp_runtime *rt, const dp_scratch *scratch, size_t bytes)
{
    return !scratch ? 0 : scratch->bytes < bytes ? 1 : scratch->bytes / 4 > with_room(rt, bytes) ? 2 : 3;
}

/* Takes the idle buffer that fits best: small calls leave the large ones to large calls. */
static dp_scratch *take_idle(dp_runtime *rt, size_t bytes)
{
    dp_scratch *best = NULL;
    for (int i = 0; i < DP_SCRATCH_SLOTS && fit(rt, best, bytes) < 3; i++) {
        dp_scratch *found = atomic_exchange(&rt->scratch[i], NULL);
        if (!found) continue;
        if (fit(rt, found, bytes) > fit(rt, best, bytes)) {
            dp_scratch *const other = best;
            best = found;
            found = other;
        }
        if (found) dp_scratch_release(rt, found);
    }
    return best;
}

/* Gives a buffer memory; false where there is none, and the buffer is as it was. */
static bool provide(dp_runtime *rt, dp_scratch *scratch, size_t bytes)
{
    const size_t rounded = with_room(rt, bytes);
    char *const base = rounded ? dp_pages_alloc(rt, rounded, DP_NODE_ANY) : NULL;
    if (!base) return false;
    atomic_fetch_add(&rt->scratch_bytes, rounded);
    scratch->base = base;
    scratch->bytes = rounded;
    return true;
}

/* A new buffer, NULL where there is no memory for it. */
static dp_scratch *scratch_new(dp_runtime *rt, size_t bytes)
{
    dp_scratch *const scratch = dp_heap_resize(rt, NULL, 0, sizeof *scratch);
    if (!scratch) return NULL;
    atomic_fetch_add(&rt->scratch_bytes, sizeof *scratch);
    if (provide(rt, scratch, bytes)) return scratch;
    scratch_free(rt, scratch);
    return NULL;
}

dp_scratch *dp_scratch_acquire(dp_runtime *rt, size_t bytes)
{
    const uint64_t call = atomic_fetch_add(&rt->calls, 1) + 1;
    if (call % (DP_SCRATCH_CALLS / 4) == 0) free_stale(rt, call);
    dp_scratch *scratch = take_idle(rt, bytes);
    if (fit(rt, scratch, bytes) != 3) {
        /* A buffer grows with the calls that it serves; those of another size get their own. If small calls lived on a large
         * one it would never be given up, or be missing in some later call that should not have to allocate. */
        const bool grows = scratch && scratch->bytes < bytes && with_room(rt, bytes) / 4 <= scratch->bytes;
        dp_scratch *const own = grows ? NULL : scratch_new(rt, bytes);
        if (own) {
            if (scratch) dp_scratch_release(rt, scratch);
            scratch = own;
        } else if (!scratch) {
            return NULL;
        } else {
            free_base(rt, scratch); /* first, so that the limit does not count both */
            if (!provide(rt, scratch, bytes)) {
                dp_scratch_release(rt, scratch);
                return NULL;
            }
        }
    }
    scratch->last_call = call;
    scratch->used = 0;
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
