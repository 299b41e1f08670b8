/* AVX2 token attention: logits of key rows, weighted sums of value rows.
 *
 * Rows come from memory, most often scattered; the arithmetic has to stay below the time that takes. A row is widened
 * once for up to four heads; logits of up to 8 (row, head) pairs are summed across lanes in one transposing reduction;
 * weighted sums stay in registers over a chunk of rows. Rows are prefetched AHEAD rows early. */
#include "avx2.h"

#include "../row_chunks.h"

/* The products of block j, added to sum[h * n_rows + r]. */
DP_INLINE void logit_block(const float *arranged, size_t padded, const char *const row[], size_t j, int half,
                           __m256 sum[8], size_t heads, size_t n_rows, dp_type type)
{
    DP_UNROLL
    for (size_t r = 0; r < n_rows; r++) {
        const dp_block k = dp_load_block(row[r], j, half, type);
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            __m256 *s = &sum[h * n_rows + r];
            *s = _mm256_fmadd_ps(_mm256_load_ps(arranged + h * padded + j), k.first, *s);
            *s = _mm256_fmadd_ps(_mm256_load_ps(arranged + h * padded + j + 8), k.second, *s);
        }
    }
}

/* Lane h * n_rows + r of the result is q[h] . row[r]; heads and n_rows are constants, heads * n_rows <= 8. */
DP_INLINE __m256 logit_tile(const float *arranged, size_t padded, size_t d, const char *const row[], size_t heads,
                            size_t n_rows, dp_type type)
{
    __m256 sum[8];
    DP_UNROLL
    for (size_t i = 0; i < 8; i++)
        sum[i] = _mm256_setzero_ps();
    size_t j = 0;
    for (; j + DP_BLOCK <= d; j += DP_BLOCK)
        logit_block(arranged, padded, row, j, 0, sum, heads, n_rows, type);
    if (j < d)
        logit_block(arranged, padded, row, j, 1, sum, heads, n_rows, type);
    return dp_sum_lanes_8(sum);
}

/* Logits of the n rows of a chunk for `heads` (a constant) heads. */
DP_INLINE void logit_chunk(const float *q, size_t d, const row_pointers *pointers, size_t n, float scale, float *out,
                           size_t out_stride, size_t heads, int prefetch, dp_type type)
{
    const size_t tile_rows = heads == 1 ? 8 : heads == 2 ? 4 : 2, padded = (d + DP_BLOCK - 1) / DP_BLOCK * DP_BLOCK;
    const __m256 factor = _mm256_set1_ps(scale);
    _Alignas(32) float arranged[4 * DP_MAX_DIM], logits[8];
    for (size_t h = 0; h < heads; h++)
        for (size_t j = 0; j < d; j += DP_BLOCK) {
            const dp_block x = d - j < DP_BLOCK ? dp_arrange_block(q + h * d, j, 1, type)
                                                : dp_arrange_block(q + h * d, j, 0, type);
            _mm256_store_ps(arranged + h * padded + j, x.first);
            _mm256_store_ps(arranged + h * padded + j + 8, x.second);
        }
    for (size_t i = 0; i < n; i += tile_rows, out += tile_rows) {
        const char *const *row = pointers->row + i;
        if (prefetch)
            prefetch_ahead(pointers, i, tile_rows, d, type);
        const __m256 x = _mm256_mul_ps(logit_tile(arranged, padded, d, row, heads, tile_rows, type), factor);
        const size_t stored = n - i < tile_rows ? n - i : tile_rows;
        _mm256_store_ps(logits, x);
        for (size_t h = 0; h < heads; h++)
            for (size_t r = 0; r < stored; r++)
                out[h * out_stride + r] = logits[h * tile_rows + r];
    }
}

/* acc[h][j ..] += sum over the n rows of a chunk, `heads` x `blocks` (constants) blocks of columns from j; one half block
 * where `half`. */
DP_INLINE void value_tile(const float *w, size_t w_stride, const row_pointers *pointers, size_t n, size_t d, size_t j,
                          float *acc, size_t heads, size_t blocks, int half, int prefetch, dp_type type)
{
    dp_block sum[4][4];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t b = 0; b < blocks; b++)
            sum[h][b] = (dp_block){_mm256_setzero_ps(), _mm256_setzero_ps()};
    }
    for (size_t i = 0; i < n; i++) {
        const char *const row = pointers->row[i];
        if (prefetch)
            prefetch_ahead(pointers, i, 1, d, type);
        __m256 weight[4];
        DP_UNROLL
        for (size_t h = 0; h < heads; h++)
            weight[h] = _mm256_set1_ps(w[h * w_stride + i]);
        DP_UNROLL
        for (size_t b = 0; b < blocks; b++) {
            const dp_block v = dp_load_block(row, j + b * DP_BLOCK, half, type);
            DP_UNROLL
            for (size_t h = 0; h < heads; h++) {
                sum[h][b].first = _mm256_fmadd_ps(weight[h], v.first, sum[h][b].first);
                sum[h][b].second = _mm256_fmadd_ps(weight[h], v.second, sum[h][b].second);
            }
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t b = 0; b < blocks; b++) {
            const dp_block x = dp_natural_block(sum[h][b], type);
            float *target = acc + h * d + j + b * DP_BLOCK;
            _mm256_storeu_ps(target, _mm256_add_ps(_mm256_loadu_ps(target), x.first));
            if (!half)
                _mm256_storeu_ps(target + 8, _mm256_add_ps(_mm256_loadu_ps(target + 8), x.second));
        }
    }
}

/* All columns for `heads` (a constant) heads: tiles of up to 8 accumulators, the last with what is left. */
DP_INLINE void value_chunk(const float *w, size_t w_stride, const row_pointers *pointers, size_t n, size_t d,
                           float *acc, size_t heads, int prefetch, dp_type type)
{
    const size_t blocks = heads == 1 ? 4 : heads == 2 ? 2 : 1;
    size_t j = 0;
    for (; j + blocks * DP_BLOCK <= d; j += blocks * DP_BLOCK)
        value_tile(w, w_stride, pointers, n, d, j, acc, heads, blocks, 0, prefetch && j == 0, type);
    for (; j + DP_BLOCK <= d; j += DP_BLOCK)
        value_tile(w, w_stride, pointers, n, d, j, acc, heads, 1, 0, prefetch && j == 0, type);
    if (j < d)
        value_tile(w, w_stride, pointers, n, d, j, acc, heads, 1, 1, prefetch && j == 0, type);
}

DP_ROWS(f32, DP_F32, point_at_rows)
DP_ROWS(f16, DP_F16, point_at_rows)
DP_ROWS(bf16, DP_BF16, point_at_rows)

void dp_avx2_init_rows(dp_kernels *k)
{
    k->key_logits[DP_F32] = key_logits_f32;
    k->key_logits[DP_F16] = key_logits_f16;
    k->key_logits[DP_BF16] = key_logits_bf16;
    k->weighted_values[DP_F32] = weighted_values_f32;
    k->weighted_values[DP_F16] = weighted_values_f16;
    k->weighted_values[DP_BF16] = weighted_values_bf16;
}
