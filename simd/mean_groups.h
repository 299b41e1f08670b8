/* Weighted sums of mean values in groups of heads: what the vector ISAs' scores.c share. */
#ifndef DP_SIMD_MEAN_GROUPS_H
#define DP_SIMD_MEAN_GROUPS_H

#include "inline.h"
#include "kernels.h"

/* Rows to be summed, and how many of those after them are to be fetched, a line per row and pass. */
typedef struct mean_rows {
    const dp_row *rows;
    size_t n, ahead, d;
} mean_rows;

DP_INLINE void fetch_mean(mean_rows m, size_t i, size_t j)
{
    if (i < m.ahead) __builtin_prefetch((const int8_t *)dp_row_address(m.rows[m.n + i]) + j, 0, 2);
}

/* acc[h * d + j ..] += for `heads` (a constant) heads and a block of columns from j on, while the rows go by. */
typedef void mean_block_fn(const float *w, size_t w_stride, mean_rows rows, size_t j, float *acc, size_t heads);

/* Groups of four heads, blocks of `columns` columns; each line of the rows ahead is fetched once. */
DP_INLINE void means_in_blocks(const float *w, size_t w_stride, size_t heads, mean_rows rows, float *acc,
                               size_t columns, mean_block_fn *block)
{
    const size_t ahead = rows.ahead < rows.n ? rows.ahead : rows.n;
    for (size_t h = 0; h < heads; h += 4)
        for (size_t j = 0; j < rows.d; j += columns) {
            const float *const weights = w + h * w_stride;
            float *const sums = acc + h * rows.d;
            rows.ahead = h == 0 && j % 64 == 0 ? ahead : 0;
            switch (heads - h) {
            case 1: block(weights, w_stride, rows, j, sums, 1); break;
            case 2: block(weights, w_stride, rows, j, sums, 2); break;
            case 3: block(weights, w_stride, rows, j, sums, 3); break;
            default: block(weights, w_stride, rows, j, sums, 4); break;
            }
        }
}

#endif
