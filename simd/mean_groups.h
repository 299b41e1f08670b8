/* Weighted sums of mean values in groups of heads: what the vector ISAs' scores.c share. */
#ifndef DP_SIMD_MEAN_GROUPS_H
#define DP_SIMD_MEAN_GROUPS_H

#include "inline.h"
#include "kernels.h"

/* Rows to be summed, and in the first pass over them those that are fetched meanwhile: NEAR_ROWS on, up to the last. Whole
 * rows: the hardware's prefetcher helps where lines follow one another. (d 128, every other row of a segment, AVX-512, one
 * thread: 21 ns a row; with a line of each row at a time, a batch of 128 rows ahead, 27; every tenth row: 44, not 78. At 128K
 * tokens the stage takes 0.41 ms, not 0.47.) */
enum { NEAR_ROWS = 32 };
typedef struct mean_rows {
    const dp_row *rows;
    size_t n, last, d;
} mean_rows;

DP_INLINE void fetch_mean(mean_rows m, size_t i)
{
    if (i + NEAR_ROWS >= m.last) return;
    const int8_t *const row = dp_row_address(m.rows[i + NEAR_ROWS]);
    for (size_t j = 0; j < m.d; j += 64) __builtin_prefetch(row + j, 0, 3);
}

/* acc[h * d + j ..] += for `heads` (a constant) heads and a block of columns from j on, while the rows go by. */
typedef void mean_block_fn(const float *w, size_t w_stride, mean_rows rows, size_t j, float *acc, size_t heads);

/* Groups of four heads, blocks of `columns` columns. */
DP_INLINE void means_in_blocks(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n, size_t ahead,
                               size_t d, float *acc, size_t columns, mean_block_fn *block)
{
    mean_rows m = {.rows = rows, .n = n, .last = n + (ahead < n ? ahead : n), .d = d};
    for (size_t h = 0; h < heads; h += 4)
        for (size_t j = 0; j < d; j += columns) {
            const float *const weights = w + h * w_stride;
            float *const sums = acc + h * d;
            switch (heads - h) {
            case 1: block(weights, w_stride, m, j, sums, 1); break;
            case 2: block(weights, w_stride, m, j, sums, 2); break;
            case 3: block(weights, w_stride, m, j, sums, 3); break;
            default: block(weights, w_stride, m, j, sums, 4); break;
            }
            m.last = 0; /* all are in the cache */
        }
}

#endif
