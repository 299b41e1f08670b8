/* Layout of a segment in its arena. */
#include "kv/segment.h"

#include <string.h>

#include "simd/half.h"

/* Tokens from which a segment has a slope, which is as long as key_dim mean values: those of 16 * key_dim tokens. */
enum { SLOPE_TOKENS = 4096 };

static size_t round64(size_t bytes)
{
    return (bytes + 63) & ~(size_t)63;
}

static size_t panels_of(size_t n_clusters)
{
    return (n_clusters + DP_PANEL - 1) / DP_PANEL;
}

/* Lays the parts out from base (NULL: only measures) and returns the bytes taken. */
static size_t lay_out(dp_segment *s, char *base, const dp_row_format *f)
{
    const size_t n_clusters = s->room, n_panels = panels_of(n_clusters), padded = n_panels * DP_PANEL;
    size_t at = 0;
#define PART(member, count)                                                                                            \
    do {                                                                                                               \
        if (base) s->member = (void *)(base + at);                                                                     \
        at += round64((count) * sizeof *s->member);                                                                    \
    } while (0)
    PART(panels, n_panels * dp_panel_bytes(f->key_dim));
    PART(mean_key, f->key_dim);
    PART(size, padded);
    PART(spread, padded);
    PART(limit, padded);
    PART(mean_values, n_clusters * f->value_dim);
    PART(mean_step, n_clusters);
    if (s->has_slope) {
        PART(slope, f->key_dim * f->value_dim);
        PART(slope_step, f->key_dim);
    }
    if (f->has_codes) {
        const size_t groups = n_clusters ? ((size_t)s->n_tokens + DP_CODE_GROUP - 1) / DP_CODE_GROUP : 0;
        PART(codes, groups * dp_code_bytes(f));
        PART(code_step, n_clusters ? s->n_tokens : 0);
        PART(code_base, n_clusters);
        PART(signs, (n_clusters ? s->n_tokens / DP_SIGN_GROUP + n_clusters : 0) * dp_sign_bytes(f));
    }
    PART(offset, n_clusters + 1);
    PART(token, s->n_tokens);
    PART(holders, 1);
#undef PART
    return at;
}

static dp_segment shape(size_t n_tokens, size_t n_clusters)
{
    return (dp_segment){.n_tokens = (uint32_t)n_tokens,
                        .room = (uint32_t)n_clusters,
                        .has_slope = n_tokens >= SLOPE_TOKENS,
                        .n_clusters = (uint32_t)n_clusters,
                        .n_panels = (uint32_t)panels_of(n_clusters)};
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
    dp_segment s = dp_segment_shaped(format, first_token, n_tokens, n_clusters);
    char *const rows = s.row_bytes ? dp_arena_alloc(arena, s.row_bytes) : NULL;
    char *const index = rows || !s.row_bytes ? dp_arena_alloc(arena, s.index_bytes) : NULL;
    if (!index) {
        dp_arena_release(arena, rows, s.row_bytes);
        return false;
    }
    memset(index, 0, s.index_bytes); /* what lies between the parts goes into files, too */
    dp_segment_bind(&s, format, rows, index);
    *segment = s;
    return true;
}

dp_segment dp_segment_shaped(const dp_row_format *format, uint64_t first_token, size_t n_tokens, size_t n_clusters)
{
    dp_segment s = shape(n_tokens, n_clusters);
    s.first_token = first_token;
    s.row_bytes = format->borrowed ? 0 : dp_segment_row_bytes(format, n_tokens);
    s.index_bytes = lay_out(&s, NULL, format);
    return s;
}

void dp_segment_bind(dp_segment *s, const dp_row_format *format, char *rows, char *index)
{
    s->rows = rows;
    s->index = index;
    lay_out(s, index, format);
    atomic_init(s->holders, 1);
}

/* What selection computes with: numbers as dp_build_segment makes them. A NaN says that keys were. */
static bool describes(const dp_segment *s, uint32_t cluster)
{
    const float size = dp_f32_from_bf16(s->size[cluster]), spread = dp_f32_from_bf16(s->spread[cluster]),
                limit = dp_f32_from_bf16(s->limit[cluster]);
    if (cluster >= s->n_clusters) return size == 0 && spread == 0 && limit == 0;
    const float most = 1.01f * (float)dp_segment_size(s, cluster); /* rounded up */
    return !(size < 0) && !(size > most) && !(spread < 0) && limit >= 0 && limit <= 8; /* sqrt(2 log 65536) is 4.7 */
}

bool dp_segment_is_sound(const dp_segment *s)
{
    uint64_t seen[(UINT16_MAX + 1) / 64] = {0};
    if (s->offset[0] || s->offset[s->n_clusters] != s->n_tokens) return false;
    for (uint32_t c = 0; c < s->n_clusters; c++)
        if (s->offset[c] > s->offset[c + 1]) return false;
    for (uint32_t c = 0; c < s->n_panels * DP_PANEL; c++)
        if (!describes(s, c)) return false;
    for (uint32_t t = 0; t < s->n_tokens; t++) {
        const uint16_t token = s->token[t];
        if (token >= s->n_tokens || seen[token / 64] >> token % 64 & 1) return false;
        seen[token / 64] |= (uint64_t)1 << token % 64;
    }
    return true;
}

dp_segment dp_segment_share(const dp_segment *segment)
{
    if (segment->index) atomic_fetch_add(segment->holders, 1);
    return *segment;
}

void dp_segment_free(dp_segment *segment, dp_arena *arena)
{
    if (segment->index && atomic_fetch_sub(segment->holders, 1) == 1) {
        dp_arena_release(arena, segment->rows, segment->row_bytes);
        dp_arena_release(arena, segment->index, segment->index_bytes);
    }
    *segment = (dp_segment){0};
}

void dp_segment_unpack(const dp_segment *s, const dp_row_format *f, size_t n, char *k, char *v)
{
    for (uint32_t c = 0; c < s->n_clusters; c++) {
        const char *const keys = dp_segment_keys(s, f, c), *const values = dp_segment_values(s, f, c);
        const uint16_t *const tokens = s->token + s->offset[c];
        for (uint32_t i = 0; i < dp_segment_size(s, c); i++) {
            if (tokens[i] >= n) continue;
            memcpy(k + tokens[i] * f->key_bytes, keys + i * f->key_bytes, f->key_bytes);
            memcpy(v + tokens[i] * f->value_bytes, values + i * f->value_bytes, f->value_bytes);
        }
    }
}
