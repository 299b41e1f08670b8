/* Taking tokens back. Segments are immutable: one that holds tokens of what is to be the window, or behind it, is dropped,
 * and those of its rows that stay go back into the tail, in token order, until they are clustered anew. */
#include <string.h>

#include "kv/tail.h"

/* What becomes of a head. */
typedef struct cut {
    size_t sink, tail;   /* rows in the end */
    size_t restored;     /* of the tail's: rows out of dropped segments */
    uint32_t n_segments; /* that stay */
    uint64_t first;      /* token of the tail */
} cut;

static size_t min_size(uint64_t a, size_t b)
{
    return a < b ? (size_t)a : b;
}

static cut cut_at(const dp_sequence *s, const dp_layer *layer, const dp_head *head, uint64_t n_tokens)
{
    const uint64_t tail_first = layer->n_tokens - head->tail.n;
    const uint64_t window = s->config.window, before_window = n_tokens > window ? n_tokens - window : 0;
    cut c = {.sink = min_size(n_tokens, head->sink.n), .n_segments = head->n_segments, .first = tail_first};
    while (c.n_segments) {
        const dp_segment *const last = &head->segments[c.n_segments - 1];
        if (last->first_token + last->n_tokens <= before_window) break;
        c.first = last->first_token;
        c.n_segments--;
    }
    if (n_tokens > c.first) {
        c.tail = (size_t)(n_tokens - c.first);
        c.restored = min_size(tail_first - c.first, c.tail);
    }
    return c;
}

static void apply(dp_sequence *s, uint32_t layer, uint32_t kv_head, uint64_t n_tokens)
{
    dp_head *const head = &s->layers[layer].heads[kv_head];
    const dp_row_format *const f = &s->format;
    const cut c = cut_at(s, &s->layers[layer], head, n_tokens);
    head->sink.n = c.sink;
    if (c.n_segments < head->n_segments) {
        const size_t kept = f->borrowed ? 0 : c.tail - c.restored;
        if (kept) {
            memmove(head->tail.k + c.restored * f->key_bytes, head->tail.k, kept * f->key_bytes);
            memmove(head->tail.v + c.restored * f->value_bytes, head->tail.v, kept * f->value_bytes);
        }
        while (head->n_segments > c.n_segments) {
            dp_segment *const last = &head->segments[--head->n_segments];
            const size_t before = (size_t)(last->first_token - c.first); /* rows of the tail before this segment's */
            if (before < c.restored && !f->borrowed)
                dp_segment_unpack(last, f, c.restored - before, head->tail.k + before * f->key_bytes,
                                  head->tail.v + before * f->value_bytes);
            dp_head_release(s, head, last);
        }
        /* As at the end of a prompt, the heads take turns. */
        const size_t waiting = c.tail > s->config.window ? c.tail - s->config.window : 0;
        head->pending_limit = (uint32_t)waiting + dp_sequence_first_limit(s, layer, kv_head);
    }
    head->tail.n = c.tail;
    (void)dp_tail_reserve(s, head, 0); /* gives room back; where it cannot, it stays */
}

dp_status dp_sequence_truncate(dp_sequence *s, uint32_t layer, uint64_t n_tokens)
{
    if (!s) return dp_fail(NULL, DP_ERR_INVALID, "dp_sequence_truncate: sequence is NULL");
    const uint32_t n_layers = s->config.n_layers, n_heads = s->config.n_kv_heads;
    if (layer != DP_ALL_LAYERS && layer >= n_layers)
        return dp_fail(s->runtime, DP_ERR_INVALID, "dp_sequence_truncate: layer %u of %u", layer, n_layers);
    const uint32_t first = layer == DP_ALL_LAYERS ? 0 : layer, last = layer == DP_ALL_LAYERS ? n_layers : layer + 1;
    for (uint32_t l = first; l < last; l++)
        if (n_tokens > s->layers[l].n_tokens)
            return dp_fail(s->runtime, DP_ERR_INVALID, "dp_sequence_truncate: layer %u has %llu tokens, not %llu", l,
                           (unsigned long long)s->layers[l].n_tokens, (unsigned long long)n_tokens);
    for (uint32_t l = first; l < last; l++)
        for (uint32_t h = 0; h < n_heads; h++) {
            dp_head *const head = &s->layers[l].heads[h];
            const size_t tail = cut_at(s, &s->layers[l], head, n_tokens).tail;
            if (tail > head->tail.n && !dp_tail_reserve(s, head, tail - head->tail.n))
                return dp_no_memory(s->runtime, "dp_sequence_truncate: no memory to put %zu tokens back",
                                    tail - head->tail.n);
        }
    for (uint32_t l = first; l < last; l++) {
        if (s->layers[l].n_tokens == n_tokens) continue;
        for (uint32_t h = 0; h < n_heads; h++) apply(s, l, h, n_tokens);
        s->layers[l].n_tokens = n_tokens;
    }
    return DP_OK;
}
