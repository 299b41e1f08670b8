/* Growing and shrinking tails. */
#include "kv/tail.h"

bool dp_tail_reserve(const dp_sequence *s, dp_head *head, size_t n)
{
    dp_rows *const tail = &head->tail;
    const size_t needed = tail->n + n;
    size_t most = (size_t)s->config.window +
                  (n < DP_PROMPT_CHUNK ? s->config.pending_tokens + DP_PROMPT_CHUNK : s->config.segment_tokens + n);
    if (needed > most) most = needed + needed / 4; /* a dense layer's, or what a truncation put back */
    size_t capacity = tail->capacity;
    if (needed > capacity) {
        capacity = 2 * capacity < most ? 2 * capacity : most;
        if (capacity < needed) capacity = needed;
    } else if (capacity > 2 * most) {
        capacity = most;
    } else {
        return true;
    }
    return dp_rows_resize(tail, s->runtime, &s->format, capacity, dp_sequence_node(s, head->arena));
}
