/* AVX2 token attention: logits of key rows, weighted sums of value rows.
 *
 * Rows come from memory; the arithmetic has to stay below the time that takes, and has to keep memory busy: while it works
 * on a row it asks for another one. A row is widened once for up to four heads; logits of up to 8 (row, head) pairs are
 * summed across lanes in one transposing reduction. */
#include "avx2.h"

#include "../int8_rows.h"
#include "../row_groups.h"

/* *sum += q . k over block j. */
DP_INLINE void multiply(const float *q, size_t j, dp_block k, __m256 *sum)
{
    *sum = _mm256_fmadd_ps(_mm256_load_ps(q + j), k.first, *sum);
    *sum = _mm256_fmadd_ps(_mm256_load_ps(q + j + 8), k.second, *sum);
}

/* The products of block j, added to sum[h * n_rows + r]. Rows or heads come first such that the operands of the inner loop
 * stay in registers. */
DP_INLINE void logit_block(const float *arranged, size_t padded, const dp_row *row, const dp_row *next,
                           size_t j, int half, __m256 sum[8], size_t heads, size_t n_rows, dp_type type)
{
    const int rows_first = heads <= 2;
    dp_block k[TILE_ROWS];
    DP_UNROLL
    for (size_t r = 0; r < n_rows; r++) {
        prefetch_block(dp_row_address(next[r]), j, DP_BLOCK, type);
        k[r] = dp_load_block(dp_row_address(row[r]), j, half, type);
        DP_UNROLL
        for (size_t h = 0; rows_first && h < heads; h++) multiply(arranged + h * padded, j, k[r], &sum[h * n_rows + r]);
    }
    DP_UNROLL
    for (size_t h = 0; !rows_first && h < heads; h++) {
        DP_UNROLL
        for (size_t r = 0; r < n_rows; r++) multiply(arranged + h * padded, j, k[r], &sum[h * n_rows + r]);
    }
}

/* q is arranged by blocks, padded to whole ones; heads * n_rows <= 8. */
DP_INLINE void logit_tile(const float *arranged, size_t d, const dp_row row[], const dp_row next[],
                          float scale, float out[TILE_PAIRS], size_t heads, size_t n_rows, dp_type type)
{
    const size_t padded = (d + DP_BLOCK - 1) / DP_BLOCK * DP_BLOCK;
    __m256 sum[8];
    DP_UNROLL
    for (size_t i = 0; i < 8; i++) sum[i] = _mm256_setzero_ps();
    size_t j = 0;
    for (; j + DP_BLOCK <= d; j += DP_BLOCK) logit_block(arranged, padded, row, next, j, 0, sum, heads, n_rows, type);
    if (j < d) logit_block(arranged, padded, row, next, j, 1, sum, heads, n_rows, type);
    _mm256_store_ps(out, _mm256_mul_ps(dp_sum_lanes_8(sum), _mm256_set1_ps(scale)));
}

/* Logits for `heads` (a constant) heads. */
DP_INLINE void group_logits(const float *q, size_t d, const dp_row *rows, size_t n, share ahead, float scale,
                            float *out, size_t out_stride, size_t heads, dp_type type)
{
    const size_t tile_rows = heads == 1 ? 8 : heads == 2 ? 4 : 2, padded = (d + DP_BLOCK - 1) / DP_BLOCK * DP_BLOCK;
    _Alignas(32) float arranged[GROUP * DP_MAX_DIM];
    for (size_t h = 0; h < heads; h++)
        for (size_t j = 0; j < d; j += DP_BLOCK) {
            const dp_block x =
                d - j < DP_BLOCK ? dp_arrange_block(q + h * d, j, 1, type) : dp_arrange_block(q + h * d, j, 0, type);
            _mm256_store_ps(arranged + h * padded + j, x.first);
            _mm256_store_ps(arranged + h * padded + j + 8, x.second);
        }
    logits_in_tiles(arranged, d, rows, n, ahead, scale, out, out_stride, heads, tile_rows, logit_tile, type);
}

/* Sums of block j. */
DP_INLINE void value_block(const float *w, size_t w_stride, size_t padded, const dp_row row[], const dp_row next[], size_t j,
                           int half, float *acc, size_t heads, size_t n_rows, dp_type type)
{
    dp_block sum[GROUP];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++)
        sum[h] = (dp_block){_mm256_load_ps(acc + h * padded + j), _mm256_load_ps(acc + h * padded + j + 8)};
    DP_UNROLL
    for (size_t r = 0; r < n_rows; r++) {
        prefetch_block(dp_row_address(next[r]), j, DP_BLOCK, type);
        const dp_block v = dp_load_block(dp_row_address(row[r]), j, half, type);
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            const __m256 weight = _mm256_set1_ps(w[h * w_stride + r]);
            sum[h].first = _mm256_fmadd_ps(weight, v.first, sum[h].first);
            sum[h].second = _mm256_fmadd_ps(weight, v.second, sum[h].second);
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        _mm256_store_ps(acc + h * padded + j, sum[h].first);
        _mm256_store_ps(acc + h * padded + j + 8, sum[h].second);
    }
}

DP_INLINE void value_tile(const float *w, size_t w_stride, size_t d, size_t padded, const dp_row row[], const dp_row next[],
                          float *acc, size_t heads, size_t n_rows, dp_type type)
{
    size_t j = 0;
    for (; j + DP_BLOCK <= d; j += DP_BLOCK)
        value_block(w, w_stride, padded, row, next, j, 0, acc, heads, n_rows, type);
    if (j < d) value_block(w, w_stride, padded, row, next, j, 1, acc, heads, n_rows, type);
}

DP_INLINE void add_sums(float *acc, size_t d, const float *sums, size_t padded, size_t heads, dp_type type)
{
    for (size_t h = 0; h < heads; h++)
        for (size_t j = 0; j < d; j += DP_BLOCK) {
            const float *const sum = sums + h * padded + j;
            const dp_block x = dp_natural_block((dp_block){_mm256_load_ps(sum), _mm256_load_ps(sum + 8)}, type);
            float *const target = acc + h * d + j;
            _mm256_storeu_ps(target, _mm256_add_ps(_mm256_loadu_ps(target), x.first));
            if (j + DP_BLOCK <= d) _mm256_storeu_ps(target + 8, _mm256_add_ps(_mm256_loadu_ps(target + 8), x.second));
        }
}

/* Sums for `heads` (a constant) heads. */
DP_INLINE void group_values(const float *w, size_t w_stride, const dp_row *rows, size_t n, share ahead, size_t d,
                            float *acc, size_t heads, dp_type type)
{
    values_in_tiles(w, w_stride, rows, n, ahead, d, acc, heads, DP_BLOCK, value_tile, add_sums, type);
}

DP_ROWS(f32, DP_F32, 4)
DP_ROWS(f16, DP_F16, 4)
DP_ROWS(bf16, DP_BF16, 4)
DP_ROWS(int8, DP_INT8, 4)
DP_INT8_ROWS

void dp_avx2_init_rows(dp_kernels *k)
{
    k->key_logits[DP_F32] = key_logits_f32;
    k->key_logits[DP_F16] = key_logits_f16;
    k->key_logits[DP_BF16] = key_logits_bf16;
    k->weighted_values[DP_F32] = weighted_values_f32;
    k->weighted_values[DP_F16] = weighted_values_f16;
    k->weighted_values[DP_BF16] = weighted_values_bf16;
    k->key_logits[DP_INT8] = key_logits_of_int8;
    k->weighted_values[DP_INT8] = weighted_values_of_int8;
}
