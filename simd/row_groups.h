/* Token attention in groups of heads: what the vector ISAs' rows.c share. A row serves a group of heads while it is in
 * registers: 1 to GROUP of them, or `most`, the ISA's largest group. All rows pass once per group, and meanwhile the rows
 * ahead are fetched. The arithmetic, group_logits() and group_values(), is each ISA's.
 * Everything is static: an ISA's object must not export code that other translation units could pick up. */
#ifndef DP_SIMD_ROW_GROUPS_H
#define DP_SIMD_ROW_GROUPS_H

#include <stdint.h>
#include <string.h>

#include "inline.h"
#include "kernels.h"

enum {
    GROUP = 4,
    GROUP_MOST = 8, /* on any ISA */
    TILE_ROWS = 8,  /* most rows of a tile of logits, */
    VALUE_ROWS = 4, /* and rows of one of values, in all groups: each fetches for some of the tiles */
    TILE_PAIRS = 16 /* most (row, head) pairs of a tile */
};

/* What a group fetches: row i + distance when it works on row i, as far as there are rows; of several groups, which all see
 * each row, every one its share, so that memory has work during all passes. */
typedef struct share {
    size_t distance, last, groups, group;
} share;

/* To be asked at every step, with *others = ahead.group at first: is it this group's turn? */
DP_INLINE int is_turn(size_t *others, share ahead)
{
    const int turn = *others == 0;
    *others = turn ? ahead.groups - 1 : *others - 1;
    return turn;
}

DP_INLINE size_t element_bytes(dp_type type)
{
    return type == DP_F32 ? 4 : type == DP_INT8 ? 1 : 2;
}

/* Fetches the lines that begin in the block of `block` elements from j on. */
DP_INLINE void prefetch_block(const void *row, size_t j, size_t block, dp_type type)
{
    const size_t element = element_bytes(type), bytes = block * element;
    const uintptr_t first = (uintptr_t)row + j * element; /* a number: the address need not be anyone's */
    if (bytes < 64 && j * element % 64 != 0) return;
    for (size_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch((const void *)(first + offset), 0, 3);
}

/* How far ahead rows are fetched: so near that the rows at work and those fetched mostly share a page of 4 KiB, where the
 * hardware's prefetcher, which stops at its end, helps along. One group, bf16, d 128, 15.7 GB/s at most: keys and values 15
 * GB/s at 2 KiB, 13.5 at 4 KiB, 11.5 a batch of 32 KiB ahead. Several groups: a batch, as the first to pass would find
 * little fetched. */
DP_INLINE share start_share(size_t n, size_t ahead, size_t d, dp_type type, size_t groups)
{
    enum { NEAR = 2048, FEWEST_ROWS = 4 };
    const size_t rows = NEAR / (d * element_bytes(type)), near = rows > FEWEST_ROWS ? rows : FEWEST_ROWS;
    return (share){.distance = groups > 1 || near > n ? n : near, .last = n + ahead, .groups = groups};
}

/* What a group fetches while it works on n rows from number i on; where nothing is to be fetched, those rows themselves: no
 * harm, and no branch. *others as in is_turn(). */
DP_INLINE const dp_row *rows_ahead(const dp_row *rows, size_t i, size_t n, size_t *others, share ahead)
{
    const int fetches = is_turn(others, ahead) && i + ahead.distance + n <= ahead.last;
    return rows + i + (fetches ? ahead.distance : 0);
}

/* out[h * n_rows + r] = scale * q[h] . row[r], with next[r] fetched; heads and n_rows are constants. */
typedef void logit_tile_fn(const float *q, size_t d, const dp_row row[], const dp_row next[], float scale,
                           float out[TILE_PAIRS], size_t heads, size_t n_rows, dp_type type);

DP_INLINE void logits_in_tiles(const float *q, size_t d, const dp_row *rows, size_t n, share ahead, float scale,
                               float *out, size_t out_stride, size_t heads, size_t tile_rows, logit_tile_fn *tile,
                               dp_type type)
{
    _Alignas(64) float logits[TILE_PAIRS];
    size_t i = 0, others = ahead.group;
    for (; i + tile_rows <= n; i += tile_rows) {
        tile(q, d, rows + i, rows_ahead(rows, i, tile_rows, &others, ahead), scale, logits, heads, tile_rows, type);
        DP_UNROLL
        for (size_t h = 0; h < heads; h++)
            memcpy(out + h * out_stride + i, logits + h * tile_rows, tile_rows * sizeof *logits);
    }
    if (i == n) return;
    dp_row last[TILE_ROWS]; /* what is left, and its end again */
    for (size_t r = 0; r < tile_rows; r++) last[r] = rows[i + r < n ? i + r : n - 1];
    tile(q, d, last, last, scale, logits, heads, tile_rows, type);
    for (size_t h = 0; h < heads; h++)
        for (size_t r = 0; i + r < n; r++) out[h * out_stride + i + r] = logits[h * tile_rows + r];
}

/* acc[h * padded + j] += sum over the rows r of w[h * w_stride + r] * row[r][j], with next[r] fetched; heads and n_rows are
 * constants. Columns are in the order of the ISA's blocks, as many as whole ones have. */
typedef void value_tile_fn(const float *w, size_t w_stride, size_t d, size_t padded, const dp_row row[], const dp_row next[],
                           float *acc, size_t heads, size_t n_rows, dp_type type);

/* The sums are in the cache, not in registers, which have room for a part of the columns only: with a part of each row at a
 * time the hardware's prefetcher sees no order in what it is asked for, unless these rows begin with a page (bf16, d 128,
 * four heads, one thread: 14.5 GB/s then, and 9 to 11 elsewhere). */
DP_INLINE void add_tiles(const float *w, size_t w_stride, const dp_row *rows, size_t n, share ahead, size_t d, size_t padded,
                         float *acc, size_t heads, value_tile_fn *tile, dp_type type)
{
    size_t i = 0, others = ahead.group;
    for (; i + VALUE_ROWS <= n; i += VALUE_ROWS)
        tile(w + i, w_stride, d, padded, rows + i, rows_ahead(rows, i, VALUE_ROWS, &others, ahead), acc, heads, VALUE_ROWS,
             type);
    for (; i < n; i++) tile(w + i, w_stride, d, padded, rows + i, rows + i, acc, heads, 1, type);
}

/* acc[h * d + j] += sums[h * padded + j], from the order of the ISA's blocks to that of the columns. */
typedef void add_sums_fn(float *acc, size_t d, const float *sums, size_t padded, size_t heads, dp_type type);

/* acc[h * d + j] += the sums over all rows, in blocks of `block` columns. */
DP_INLINE void values_in_tiles(const float *w, size_t w_stride, const dp_row *rows, size_t n, share ahead, size_t d,
                               float *acc, size_t heads, size_t block, value_tile_fn *tile, add_sums_fn *add, dp_type type)
{
    const size_t padded = (d + block - 1) / block * block;
    _Alignas(64) float sums[GROUP_MOST * DP_MAX_DIM];
    memset(sums, 0, heads * padded * sizeof *sums);
    add_tiles(w, w_stride, rows, n, ahead, d, padded, sums, heads, tile, type);
    add(acc, d, sums, padded, heads, type);
}

/* Each number of heads and each type is a function of its own: inlined into one, they would compete for registers. */
typedef void group_logits_fn(const float *q, size_t d, const dp_row *rows, size_t n, share ahead, float scale,
                             float *out, size_t out_stride);
typedef void group_values_fn(const float *w, size_t w_stride, const dp_row *rows, size_t n, share ahead, size_t d,
                             float *acc);

DP_INLINE size_t count_groups(size_t heads, size_t most)
{
    return heads / most + (heads % most + GROUP - 1) / GROUP;
}

DP_INLINE void key_logits(const float *q, size_t heads, size_t d, const dp_row *rows, size_t n, size_t ahead,
                          float scale, float *out, size_t out_stride, group_logits_fn *const groups[GROUP],
                          group_logits_fn *largest, size_t most, dp_type type)
{
    share s = start_share(n, ahead, d, type, count_groups(heads, most));
    for (size_t h = 0; h < heads; s.group++) {
        const size_t left = heads - h, taken = left >= most ? most : left < GROUP ? left : GROUP;
        (taken == most ? largest : groups[taken - 1])(q + h * d, d, rows, n, s, scale, out + h * out_stride,
                                                      out_stride);
        h += taken;
    }
}

DP_INLINE void weighted_values(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,
                               size_t ahead, size_t d, float *acc, group_values_fn *const groups[GROUP],
                               group_values_fn *largest, size_t most, dp_type type)
{
    share s = start_share(n, ahead, d, type, count_groups(heads, most));
    for (size_t h = 0; h < heads; s.group++) {
        const size_t left = heads - h, taken = left >= most ? most : left < GROUP ? left : GROUP;
        (taken == most ? largest : groups[taken - 1])(w + h * w_stride, w_stride, rows, n, s, d, acc + h * d);
        h += taken;
    }
}

/* The usual d as constants let the loops over blocks unroll, and need no masks: f16, d 64, four heads, AVX-512, rows in L1: 13
 * and 9 ns a key and a value, not 16.5 and 10.5; dense decode of 32K such tokens 1.22 ms, not 1.58. */
#define DP_GROUP_OF(name, type, heads, dim)                                                                            \
    static __attribute__((noinline)) void group_logits_##name##_##heads##_##dim(                                       \
        const float *q, const dp_row *rows, size_t n, share ahead, float scale, float *out, size_t out_stride)    \
    {                                                                                                                  \
        group_logits(q, dim, rows, n, ahead, scale, out, out_stride, heads, type);                                     \
    }                                                                                                                  \
    static __attribute__((noinline)) void group_values_##name##_##heads##_##dim(                                       \
        const float *w, size_t w_stride, const dp_row *rows, size_t n, share ahead, float *acc)                   \
    {                                                                                                                  \
        group_values(w, w_stride, rows, n, ahead, dim, acc, heads, type);                                              \
    }

#define DP_GROUPS(name, type, heads)                                                                                   \
    DP_GROUP_OF(name, type, heads, 64)                                                                                 \
    DP_GROUP_OF(name, type, heads, 128)                                                                                \
    static __attribute__((noinline)) void group_logits_##name##_##heads(                                               \
        const float *q, size_t d, const dp_row *rows, size_t n, share ahead, float scale, float *out,             \
        size_t out_stride)                                                                                             \
    {                                                                                                                  \
        if (d == 64)                                                                                                   \
            group_logits_##name##_##heads##_64(q, rows, n, ahead, scale, out, out_stride);                             \
        else if (d == 128)                                                                                             \
            group_logits_##name##_##heads##_128(q, rows, n, ahead, scale, out, out_stride);                            \
        else                                                                                                           \
            group_logits(q, d, rows, n, ahead, scale, out, out_stride, heads, type);                                   \
    }                                                                                                                  \
    static __attribute__((noinline)) void group_values_##name##_##heads(                                               \
        const float *w, size_t w_stride, const dp_row *rows, size_t n, share ahead, size_t d, float *acc)         \
    {                                                                                                                  \
        if (d == 64)                                                                                                   \
            group_values_##name##_##heads##_64(w, w_stride, rows, n, ahead, acc);                                      \
        else if (d == 128)                                                                                             \
            group_values_##name##_##heads##_128(w, w_stride, rows, n, ahead, acc);                                     \
        else                                                                                                           \
            group_values(w, w_stride, rows, n, ahead, d, acc, heads, type);                                            \
    }

/* key_logits_NAME and weighted_values_NAME for rows of `type`; where `most` is not GROUP, DP_GROUPS(name, type, most) comes
 * first. */
#define DP_ROWS(name, type, most)                                                                                      \
    DP_GROUPS(name, type, 1)                                                                                           \
    DP_GROUPS(name, type, 2)                                                                                           \
    DP_GROUPS(name, type, 3)                                                                                           \
    DP_GROUPS(name, type, 4)                                                                                           \
    static void key_logits_##name(const float *q, size_t heads, size_t d, const dp_row *rows, size_t n,           \
                                  size_t ahead, float scale, float *out, size_t out_stride)                            \
    {                                                                                                                  \
        static group_logits_fn *const groups[GROUP] = {group_logits_##name##_1, group_logits_##name##_2,               \
                                                       group_logits_##name##_3, group_logits_##name##_4};              \
        key_logits(q, heads, d, rows, n, ahead, scale, out, out_stride, groups, group_logits_##name##_##most, most, type);   \
    }                                                                                                                  \
    static void weighted_values_##name(const float *w, size_t w_stride, size_t heads, const dp_row *rows,         \
                                       size_t n, size_t ahead, size_t d, float *acc)                                   \
    {                                                                                                                  \
        static group_values_fn *const groups[GROUP] = {group_values_##name##_1, group_values_##name##_2,               \
                                                       group_values_##name##_3, group_values_##name##_4};              \
        weighted_values(w, w_stride, heads, rows, n, ahead, d, acc, groups, group_values_##name##_##most, most, type);       \
    }

#endif
