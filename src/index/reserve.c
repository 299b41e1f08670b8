/* Memory for tokens to come, taken from the system before they come. */
#include "index/build.h"
#include "kv/sequence.h"
#include "runtime/runtime.h"

static size_t piece_bytes(const dp_sequence *s, uint64_t first_token, size_t n)
{
    const dp_segment shaped =
        dp_segment_shaped(&s->format, first_token, n, dp_build_clusters(&s->config, first_token, n));
    return dp_segment_bytes(&shaped);
}

/* Adds what the segments of n more tokens of a head take, as decoding makes them one after the other (index/append.c), the last
 * one early; those that take tokens in are built anew, beside what they were. Ends where it is more than `most`. */
static void add_segments(const dp_sequence *s, uint32_t layer, const dp_head *head, size_t n, uint64_t most,
                         uint64_t *bytes)
{
    const dp_sequence_config *const c = &s->config;
    const dp_segment *const last = head->n_segments ? &head->segments[head->n_segments - 1] : NULL;
    uint64_t next = s->layers[layer].n_tokens - head->tail.n, first = last ? last->first_token : next;
    size_t built = last ? last->n_tokens : 0; /* tokens of the last segment, from `first` on */
    size_t waiting = head->tail.n > c->window ? head->tail.n - c->window : 0, limit = head->pending_limit;
    while (n && *bytes <= most) {
        const size_t more = limit > waiting ? limit - waiting : 0;
        size_t due = waiting + more;
        n -= more < n ? more : n;
        while (due) {
            const size_t whole = dp_build_segment_tokens(c, next);
            size_t taken = due < whole ? due : whole;
            if (built && dp_build_extends(c, first, built, due))
                taken = due, built += due;
            else
                first = next, built = taken;
            *bytes += piece_bytes(s, first, built);
            next += taken;
            due -= taken;
        }
        waiting = 0;
        limit = c->pending_tokens;
    }
}

dp_status dp_sequence_reserve(dp_sequence *s, size_t n_tokens)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_reserve: sequence is NULL");
    const dp_sequence_config *const c = &s->config;
    if (n_tokens > UINT32_MAX)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_sequence_reserve: %zu tokens are too many", n_tokens);
    for (int a = 0; a < s->n_arenas; a++) {
        /* Pages are written to here: what the system does not have it would kill the process for, not refuse. */
        uint64_t bytes = 0, available = UINT64_MAX;
        (void)dp_system_memory(NULL, &available);
        for (uint32_t l = 0; l < c->n_layers; l++)
            for (uint32_t h = 0; h < c->n_kv_heads && !s->layers[l].dense; h++)
                if (s->layers[l].heads[h].arena == a)
                    add_segments(s, l, &s->layers[l].heads[h], n_tokens, available, &bytes);
        if (bytes > available && !dp_arena_has_spare(s->arenas[a], bytes))
            return dp_fail(s->runtime, DP_ERR_NO_MEMORY,
                           "dp_sequence_reserve: %zu tokens take more than the %llu MiB that the system has available",
                           n_tokens, (unsigned long long)(available >> 20));
        if (!dp_arena_reserve(s->arenas[a], (size_t)bytes))
            return dp_no_memory(s->runtime, "dp_sequence_reserve: no memory for %zu tokens", n_tokens);
    }
    return DP_OK;
}
