/* Layout of a segment in its arena. */
#include "kv/segment.h"

static size_t round64(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

/* Lays the parts out from base (NULL: only measures) and returns the bytes taken. */
static size_t lay_out(dp_segment *s, char *base, const dp_row_format *f)
{
    const size_t padded = (size_t)s->n_panels * DP_PANEL;
    size_t at = 0;
#define PART(member, count)                                                                                            \
    do {                                                                                                               \
        if (base) s->member = (void *)(base + at);                                                                     \
        at += round64((count) * sizeof *s->member);                                                                    \
    } while (0)
    PART(panels, padded * f->key_dim);
    PART(mean_key, f->key_dim);
    PART(size, padded);
    PART(spread, padded);
    PART(limit, padded);
    PART(mean_values, s->n_clusters * f->value_dim);
    PART(offset, s->n_clusters + 1);
    PART(token, s->n_tokens);
#undef PART
    return at;
}

static dp_segment shape(size_t n_tokens, size_t n_clusters)
{
    return (dp_segment){.n_tokens = (uint32_t)n_tokens,
                        .n_clusters = (uint32_t)n_clusters,
                        .n_panels = (uint32_t)((n_clusters + DP_PANEL - 1) / DP_PANEL)};
}

size_t dp_segment_index_bytes(const dp_row_format *format, size_t n_tokens, size_t n_clusters)
{
    dp_segment s = shape(n_tokens, n_clusters);
    return lay_out(&s, NULL, format);
}

size_t dp_segment_row_bytes(const dp_row_format *format, size_t n_tokens)
{
    return n_tokens * (format->key_bytes + format->value_bytes);
}

bool dp_segment_alloc(dp_segment *segment, dp_arena *arena, const dp_row_format *format, uint64_t first_token,
                      size_t n_tokens, size_t n_clusters)
{
    dp_segment s = shape(n_tokens, n_clusters);
    s.first_token = first_token;
    s.rows = dp_arena_alloc(arena, dp_segment_row_bytes(format, n_tokens));
    char *const index = s.rows ? dp_arena_alloc(arena, lay_out(&s, NULL, format)) : NULL;
    if (!index) return false;
    lay_out(&s, index, format);
    *segment = s;
    return true;
}
