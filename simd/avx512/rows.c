/* AVX-512 token attention: logits of key rows, weighted sums of value rows.
 *
 * Rows come from memory, most often scattered; the arithmetic has to stay below the time that takes. A row is widened
 * once for up to four heads; logits of up to 16 (row, head) pairs are summed across lanes in one transposing reduction;
 * weighted sums stay in registers over a chunk of rows. Rows are prefetched AHEAD rows early. */
#include "avx512.h"

enum {
    CHUNK = 64, /* rows that stay in cache while all heads and column tiles pass over them */
    AHEAD = 16, /* rows between a prefetch and its use: 4 KiB of 128-dimensional bf16 rows in flight */
};

/* logits[h * n_rows + r] = q[h] . row[r] for a tile whose heads and n_rows are constants, heads * n_rows <= 16. */
DP_INLINE void logit_tile(const float *arranged, size_t padded, size_t d, const char *const row[], float logits[16],
                          size_t heads, size_t n_rows, dp_type type)
{
    __m512 sum[16];
    DP_UNROLL
    for (size_t i = 0; i < 16; i++)
        sum[i] = _mm512_setzero_ps();
    for (size_t j = 0; j < d; j += DP_BLOCK) {
        const __mmask32 mask = dp_mask32(d - j);
        __m512 q_first[4], q_second[4];
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            q_first[h] = _mm512_load_ps(arranged + h * padded + j);
            q_second[h] = _mm512_load_ps(arranged + h * padded + j + 16);
        }
        DP_UNROLL
        for (size_t r = 0; r < n_rows; r++) {
            const dp_block k = dp_load_block(row[r], j, mask, type);
            DP_UNROLL
            for (size_t h = 0; h < heads; h++) {
                __m512 *s = &sum[h * n_rows + r];
                *s = _mm512_fmadd_ps(q_first[h], k.first, *s);
                *s = _mm512_fmadd_ps(q_second[h], k.second, *s);
            }
        }
    }
    _mm512_store_ps(logits, dp_sum_lanes_16(sum));
}

/* Logits of up to CHUNK rows from row `first`, for `heads` (a constant) heads. */
DP_INLINE void logit_chunk(const float *q, size_t d, const void *rows, size_t stride, const uint32_t *index,
                           size_t first, size_t last, size_t n, float scale, float *out, size_t out_stride,
                           size_t heads, dp_type type)
{
    const size_t tile_rows = heads <= 2 ? 8 : 4, padded = (d + DP_BLOCK - 1) / DP_BLOCK * DP_BLOCK;
    _Alignas(64) float arranged[4 * DP_MAX_DIM], logits[16];
    for (size_t h = 0; h < heads; h++)
        for (size_t j = 0; j < d; j += DP_BLOCK) {
            const dp_block x = dp_arrange_block(q + h * d, j, dp_mask32(d - j), type);
            _mm512_store_ps(arranged + h * padded + j, x.first);
            _mm512_store_ps(arranged + h * padded + j + 16, x.second);
        }
    for (size_t i = first; i < last; i += tile_rows) {
        const char *row[8];
        DP_UNROLL
        for (size_t r = 0; r < tile_rows; r++) /* past the end: the last row again, its result is not stored */
            row[r] = dp_row(rows, stride, index, i + r < last ? i + r : last - 1, type);
        for (size_t r = i + AHEAD; r < i + AHEAD + tile_rows && r < n; r++)
            dp_prefetch_row(dp_row(rows, stride, index, r, type), d, type);
        logit_tile(arranged, padded, d, row, logits, heads, tile_rows, type);
        const __m256 factor = _mm256_set1_ps(scale);
        const __mmask8 stored = (__mmask8)dp_mask16(last - i < tile_rows ? last - i : tile_rows);
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            const __m256 x = _mm256_maskz_loadu_ps(stored, logits + h * tile_rows);
            _mm256_mask_storeu_ps(out + h * out_stride + i, stored, _mm256_mul_ps(x, factor));
        }
    }
}

DP_INLINE void key_logits(const float *q, size_t heads, size_t d, const void *rows, size_t stride,
                          const uint32_t *index, size_t n, float scale, float *out, size_t out_stride, dp_type type)
{
    for (size_t i = 0; i < n && i < AHEAD; i++)
        dp_prefetch_row(dp_row(rows, stride, index, i, type), d, type);
    for (size_t first = 0; first < n; first += CHUNK) {
        const size_t last = n - first < CHUNK ? n : first + CHUNK;
        for (size_t h = 0; h < heads; h += 4) {
            const float *q_h = q + h * d;
            float *out_h = out + h * out_stride;
            switch (heads - h) {
            case 1: logit_chunk(q_h, d, rows, stride, index, first, last, n, scale, out_h, out_stride, 1, type); break;
            case 2: logit_chunk(q_h, d, rows, stride, index, first, last, n, scale, out_h, out_stride, 2, type); break;
            case 3: logit_chunk(q_h, d, rows, stride, index, first, last, n, scale, out_h, out_stride, 3, type); break;
            default: logit_chunk(q_h, d, rows, stride, index, first, last, n, scale, out_h, out_stride, 4, type); break;
            }
        }
    }
}

/* acc[h][j ..] += sum over rows first .. last - 1, `heads` x `blocks` (constants) blocks of columns from j. `edge` is the
 * mask of the last block. Rows AHEAD are prefetched where `prefetch` is not 0. */
DP_INLINE void value_tile(const float *w, size_t w_stride, const void *rows, size_t stride, const uint32_t *index,
                          size_t first, size_t last, size_t n, size_t d, size_t j, float *acc, size_t heads,
                          size_t blocks, __mmask32 edge, int prefetch, dp_type type)
{
    dp_block sum[4][4];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t b = 0; b < blocks; b++)
            sum[h][b] = (dp_block){_mm512_setzero_ps(), _mm512_setzero_ps()};
    }
    for (size_t i = first; i < last; i++) {
        const char *row = dp_row(rows, stride, index, i, type);
        if (prefetch && i + AHEAD < n)
            dp_prefetch_row(dp_row(rows, stride, index, i + AHEAD, type), d, type);
        __m512 weight[4];
        DP_UNROLL
        for (size_t h = 0; h < heads; h++)
            weight[h] = _mm512_set1_ps(w[h * w_stride + i]);
        DP_UNROLL
        for (size_t b = 0; b < blocks; b++) {
            const dp_block v = dp_load_block(row, j + b * DP_BLOCK, b + 1 < blocks ? 0xffffffffu : edge, type);
            DP_UNROLL
            for (size_t h = 0; h < heads; h++) {
                sum[h][b].first = _mm512_fmadd_ps(weight[h], v.first, sum[h][b].first);
                sum[h][b].second = _mm512_fmadd_ps(weight[h], v.second, sum[h][b].second);
            }
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t b = 0; b < blocks; b++) {
            const __mmask32 mask = b + 1 < blocks ? 0xffffffffu : edge;
            const __mmask16 low = (__mmask16)mask, high = (__mmask16)(mask >> 16);
            const dp_block x = dp_natural_block(sum[h][b], type);
            float *target = acc + h * d + j + b * DP_BLOCK;
            _mm512_mask_storeu_ps(target, low, _mm512_add_ps(_mm512_maskz_loadu_ps(low, target), x.first));
            _mm512_mask_storeu_ps(target + 16, high,
                                  _mm512_add_ps(_mm512_maskz_loadu_ps(high, target + 16), x.second));
        }
    }
}

/* All columns for `heads` (a constant) heads: tiles of up to 16 accumulators, the last with what is left. */
DP_INLINE void value_chunk(const float *w, size_t w_stride, const void *rows, size_t stride, const uint32_t *index,
                           size_t first, size_t last, size_t n, size_t d, float *acc, size_t heads, int prefetch,
                           dp_type type)
{
    const size_t blocks = heads <= 2 ? 4 : 2;
    for (size_t j = 0; j < d;) {
        const size_t left = (d - j + DP_BLOCK - 1) / DP_BLOCK, taken = left >= blocks ? blocks : left >= 2 ? 2 : 1;
        const __mmask32 edge = dp_mask32(d - j - (taken - 1) * DP_BLOCK);
        const int ahead = prefetch && j == 0;
        if (taken == 4)
            value_tile(w, w_stride, rows, stride, index, first, last, n, d, j, acc, heads, 4, edge, ahead, type);
        else if (taken == 2)
            value_tile(w, w_stride, rows, stride, index, first, last, n, d, j, acc, heads, 2, edge, ahead, type);
        else
            value_tile(w, w_stride, rows, stride, index, first, last, n, d, j, acc, heads, 1, edge, ahead, type);
        j += taken * DP_BLOCK;
    }
}

DP_INLINE void weighted_values(const float *w, size_t w_stride, size_t heads, const void *rows, size_t stride,
                               const uint32_t *index, size_t n, size_t d, float *acc, dp_type type)
{
    for (size_t i = 0; i < n && i < AHEAD; i++)
        dp_prefetch_row(dp_row(rows, stride, index, i, type), d, type);
    for (size_t first = 0; first < n; first += CHUNK) {
        const size_t last = n - first < CHUNK ? n : first + CHUNK;
        for (size_t h = 0; h < heads; h += 4) {
            const float *w_h = w + h * w_stride;
            float *acc_h = acc + h * d;
            const int ahead = h == 0;
            switch (heads - h) {
            case 1: value_chunk(w_h, w_stride, rows, stride, index, first, last, n, d, acc_h, 1, ahead, type); break;
            case 2: value_chunk(w_h, w_stride, rows, stride, index, first, last, n, d, acc_h, 2, ahead, type); break;
            case 3: value_chunk(w_h, w_stride, rows, stride, index, first, last, n, d, acc_h, 3, ahead, type); break;
            default: value_chunk(w_h, w_stride, rows, stride, index, first, last, n, d, acc_h, 4, ahead, type); break;
            }
        }
    }
}

#define DP_ROWS(name, type)                                                                                        \
    static void key_logits_##name(const float *q, size_t heads, size_t d, const void *rows, size_t stride,         \
                                  const uint32_t *index, size_t n, float scale, float *out, size_t out_stride)     \
    {                                                                                                              \
        key_logits(q, heads, d, rows, stride, index, n, scale, out, out_stride, type);                             \
    }                                                                                                              \
    static void weighted_values_##name(const float *w, size_t w_stride, size_t heads, const void *rows,            \
                                       size_t stride, const uint32_t *index, size_t n, size_t d, float *acc)       \
    {                                                                                                              \
        weighted_values(w, w_stride, heads, rows, stride, index, n, d, acc, type);                                 \
    }

DP_ROWS(f32, DP_F32)
DP_ROWS(f16, DP_F16)
DP_ROWS(bf16, DP_BF16)

void dp_avx512_init_rows(dp_kernels *k)
{
    k->key_logits[DP_F32] = key_logits_f32;
    k->key_logits[DP_F16] = key_logits_f16;
    k->key_logits[DP_BF16] = key_logits_bf16;
    k->weighted_values[DP_F32] = weighted_values_f32;
    k->weighted_values[DP_F16] = weighted_values_f16;
    k->weighted_values[DP_BF16] = weighted_values_bf16;
}
