/* Token attention in chunks of rows: what the vector ISAs' rows.c share. A chunk's rows are found once, serve all heads in
 * groups of up to four, and are prefetched AHEAD rows early; the arithmetic, logit_chunk() and value_chunk(), is each ISA's.
 * Everything is static: an ISA's object must not export code that other translation units could pick up. */
#ifndef DP_SIMD_ROW_CHUNKS_H
#define DP_SIMD_ROW_CHUNKS_H

#include "inline.h"
#include "kernels.h"

enum {
    CHUNK = 64, /* rows that stay in cache while all heads and column tiles pass over them */
    AHEAD = 16, /* rows between a prefetch and its use: 4 KiB of 128-dimensional bf16 rows in flight */
    TILE = 8,   /* most rows of a tile of logits */
};

/* Where the rows of a chunk are, and those AHEAD of it: `reach` rows. After these the last row is repeated, so that a tile
 * may have rows too many. */
typedef struct row_pointers {
    size_t reach;
    const char *row[CHUNK + AHEAD + TILE];
} row_pointers;

/* Finds the rows from `first` on, of n. */
typedef void point_at_rows_fn(row_pointers *p, const void *rows, size_t stride, const uint32_t *index, size_t first,
                              size_t n, dp_type type);

DP_INLINE void point_at_rows(row_pointers *p, const void *rows, size_t stride, const uint32_t *index, size_t first,
                             size_t n, dp_type type)
{
    const size_t left = n - first, bytes = stride * (type == DP_F32 ? 4 : 2);
    p->reach = left < CHUNK + AHEAD ? left : CHUNK + AHEAD;
    for (size_t i = 0; i < p->reach; i++)
        p->row[i] = (const char *)rows + (index ? index[first + i] : first + i) * bytes;
    for (size_t i = 0; i < TILE; i++)
        p->row[p->reach + i] = p->row[p->reach - 1];
}

DP_INLINE void prefetch_row(const char *row, size_t d, dp_type type)
{
    const size_t bytes = d * (type == DP_F32 ? 4 : 2);
    for (size_t offset = 0; offset < bytes; offset += 64)
        __builtin_prefetch(row + offset);
}

/* Asks for the n rows AHEAD of row i, as far as there are any. */
DP_INLINE void prefetch_ahead(const row_pointers *p, size_t i, size_t n, size_t d, dp_type type)
{
    if (i + AHEAD < p->reach)
        for (size_t r = 0; r < n; r++)
            prefetch_row(p->row[i + AHEAD + r], d, type);
}

/* Asks for the first AHEAD rows of all. */
DP_INLINE void prefetch_first(const row_pointers *p, size_t d, dp_type type)
{
    for (size_t i = 0; i < AHEAD && i < p->reach; i++)
        prefetch_row(p->row[i], d, type);
}

/* The chunks of each number of heads and each type are functions of their own: inlined into one, they would compete for
 * registers. */
typedef void logit_chunk_fn(const float *q, size_t d, const row_pointers *pointers, size_t n, float scale, float *out,
                            size_t out_stride, int prefetch);
typedef void value_chunk_fn(const float *w, size_t w_stride, const row_pointers *pointers, size_t n, size_t d,
                            float *acc, int prefetch);

DP_INLINE void key_logits(const float *q, size_t heads, size_t d, const void *rows, size_t stride,
                          const uint32_t *index, size_t n, float scale, float *out, size_t out_stride,
                          point_at_rows_fn *point, logit_chunk_fn *const chunks[4], dp_type type)
{
    for (size_t first = 0; first < n; first += CHUNK, out += CHUNK) {
        const size_t count = n - first < CHUNK ? n - first : CHUNK;
        row_pointers pointers;
        point(&pointers, rows, stride, index, first, n, type);
        if (first == 0)
            prefetch_first(&pointers, d, type);
        for (size_t h = 0; h < heads; h += 4)
            chunks[heads - h < 4 ? heads - h - 1 : 3](q + h * d, d, &pointers, count, scale, out + h * out_stride,
                                                      out_stride, h == 0);
    }
}

DP_INLINE void weighted_values(const float *w, size_t w_stride, size_t heads, const void *rows, size_t stride,
                               const uint32_t *index, size_t n, size_t d, float *acc, point_at_rows_fn *point,
                               value_chunk_fn *const chunks[4], dp_type type)
{
    for (size_t first = 0; first < n; first += CHUNK, w += CHUNK) {
        const size_t count = n - first < CHUNK ? n - first : CHUNK;
        row_pointers pointers;
        point(&pointers, rows, stride, index, first, n, type);
        if (first == 0)
            prefetch_first(&pointers, d, type);
        for (size_t h = 0; h < heads; h += 4)
            chunks[heads - h < 4 ? heads - h - 1 : 3](w + h * w_stride, w_stride, &pointers, count, d, acc + h * d,
                                                      h == 0);
    }
}

#define DP_CHUNKS(name, type, heads)                                                                                   \
    static __attribute__((noinline)) void logit_chunk_##name##_##heads(                                                \
        const float *q, size_t d, const row_pointers *pointers, size_t n, float scale, float *out, size_t out_stride,  \
        int prefetch)                                                                                                  \
    {                                                                                                                  \
        logit_chunk(q, d, pointers, n, scale, out, out_stride, heads, prefetch, type);                                 \
    }                                                                                                                  \
    static __attribute__((noinline)) void value_chunk_##name##_##heads(                                                \
        const float *w, size_t w_stride, const row_pointers *pointers, size_t n, size_t d, float *acc, int prefetch)   \
    {                                                                                                                  \
        value_chunk(w, w_stride, pointers, n, d, acc, heads, prefetch, type);                                          \
    }

/* key_logits_NAME and weighted_values_NAME for rows of `type`, which `point` finds. */
#define DP_ROWS(name, type, point)                                                                                     \
    DP_CHUNKS(name, type, 1)                                                                                           \
    DP_CHUNKS(name, type, 2)                                                                                           \
    DP_CHUNKS(name, type, 3)                                                                                           \
    DP_CHUNKS(name, type, 4)                                                                                           \
    static void key_logits_##name(const float *q, size_t heads, size_t d, const void *rows, size_t stride,             \
                                  const uint32_t *index, size_t n, float scale, float *out, size_t out_stride)         \
    {                                                                                                                  \
        static logit_chunk_fn *const chunks[4] = {logit_chunk_##name##_1, logit_chunk_##name##_2,                      \
                                                  logit_chunk_##name##_3, logit_chunk_##name##_4};                     \
        key_logits(q, heads, d, rows, stride, index, n, scale, out, out_stride, point, chunks, type);                  \
    }                                                                                                                  \
    static void weighted_values_##name(const float *w, size_t w_stride, size_t heads, const void *rows, size_t stride, \
                                       const uint32_t *index, size_t n, size_t d, float *acc)                          \
    {                                                                                                                  \
        static value_chunk_fn *const chunks[4] = {value_chunk_##name##_1, value_chunk_##name##_2,                      \
                                                  value_chunk_##name##_3, value_chunk_##name##_4};                     \
        weighted_values(w, w_stride, heads, rows, stride, index, n, d, acc, point, chunks, type);                      \
    }

#endif
