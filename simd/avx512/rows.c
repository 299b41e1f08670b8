/* AVX-512 token attention: logits of key rows, weighted sums of value rows.
 *
 * Rows come from memory, most often scattered; the arithmetic has to stay below the time that takes. A row is widened
 * once for up to four heads; logits of up to 16 (row, head) pairs are summed across lanes in one transposing reduction;
 * weighted sums stay in registers over a chunk of rows. Rows are prefetched AHEAD rows early. */
#include "avx512.h"

#include "../row_chunks.h"

/* point_at_rows() in vectors. */
DP_INLINE void point_at_rows_8(row_pointers *p, const void *rows, size_t stride, const uint32_t *index, size_t first,
                               size_t n, dp_type type)
{
    const size_t left = n - first;
    p->reach = left < CHUNK + AHEAD ? left : CHUNK + AHEAD;
    const __m512i base = _mm512_set1_epi64((long long)(uintptr_t)rows);
    const __m512i bytes = _mm512_set1_epi64((long long)(stride * (type == DP_F32 ? 4 : 2)));
    const __m512i lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), last = _mm512_set1_epi64((long long)(n - 1));
    const __m256i last_index = _mm256_set1_epi32(index ? (int)index[n - 1] : 0);
    for (size_t i = 0; i < p->reach + TILE - 1; i += TILE) {
        __m512i number = _mm512_min_epu64(_mm512_add_epi64(_mm512_set1_epi64((long long)(first + i)), lanes), last);
        if (index) {
            const __mmask8 mask = left > i ? (__mmask8)dp_mask16(left - i) : 0;
            number = _mm512_cvtepu32_epi64(_mm256_mask_loadu_epi32(last_index, mask, index + first + i));
        }
        const __m512i address = _mm512_add_epi64(base, _mm512_mullo_epi64(number, bytes));
        _mm512_storeu_si512(p->row + i, address);
    }
}

/* The products of block j, added to sum[h * n_rows + r]. */
DP_INLINE void logit_block(const float *arranged, size_t padded, const char *const row[], size_t j, __mmask32 mask,
                           __m512 sum[16], size_t heads, size_t n_rows, dp_type type)
{
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

/* Lane h * n_rows + r of the result is q[h] . row[r]; heads and n_rows are constants, heads * n_rows <= 16. */
DP_INLINE __m512 logit_tile(const float *arranged, size_t padded, size_t d, const char *const row[], size_t heads,
                            size_t n_rows, dp_type type)
{
    __m512 sum[16];
    DP_UNROLL
    for (size_t i = 0; i < 16; i++)
        sum[i] = _mm512_setzero_ps();
    size_t j = 0;
    for (; j + DP_BLOCK <= d; j += DP_BLOCK)
        logit_block(arranged, padded, row, j, 0xffffffffu, sum, heads, n_rows, type);
    if (j < d)
        logit_block(arranged, padded, row, j, dp_mask32(d - j), sum, heads, n_rows, type);
    return dp_sum_lanes_16(sum);
}

/* Lane `lanes` (a constant) becomes lane 0. Not an extraction: compilers merge that with a masked store into VEXTRACTF32X4
 * to memory, which faults on masked lanes too. */
#define DP_ROTATE(x, lanes) \
    _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(x), _mm512_castps_si512(x), lanes))

/* Logits of the n rows of a chunk for `heads` (a constant) heads. */
DP_INLINE void logit_chunk(const float *q, size_t d, const row_pointers *pointers, size_t n, float scale, float *out,
                           size_t out_stride, size_t heads, int prefetch, dp_type type)
{
    const size_t tile_rows = heads <= 2 ? 8 : 4, padded = (d + DP_BLOCK - 1) / DP_BLOCK * DP_BLOCK;
    const __m512 factor = _mm512_set1_ps(scale);
    _Alignas(64) float arranged[4 * DP_MAX_DIM];
    for (size_t h = 0; h < heads; h++)
        for (size_t j = 0; j < d; j += DP_BLOCK) {
            const dp_block x = dp_arrange_block(q + h * d, j, dp_mask32(d - j), type);
            _mm512_store_ps(arranged + h * padded + j, x.first);
            _mm512_store_ps(arranged + h * padded + j + 16, x.second);
        }
    for (size_t i = 0; i < n; i += tile_rows, out += tile_rows) {
        const char *const *row = pointers->row + i;
        if (prefetch)
            prefetch_ahead(pointers, i, tile_rows, d, type);
        const __m512 x = _mm512_mul_ps(logit_tile(arranged, padded, d, row, heads, tile_rows, type), factor);
        const __mmask16 stored = dp_mask16(n - i < tile_rows ? n - i : tile_rows);
        _mm512_mask_storeu_ps(out, stored, x);
        if (heads == 2)
            _mm512_mask_storeu_ps(out + out_stride, stored, DP_ROTATE(x, 8));
        if (heads >= 3) {
            _mm512_mask_storeu_ps(out + out_stride, stored, DP_ROTATE(x, 4));
            _mm512_mask_storeu_ps(out + 2 * out_stride, stored, DP_ROTATE(x, 8));
        }
        if (heads == 4)
            _mm512_mask_storeu_ps(out + 3 * out_stride, stored, DP_ROTATE(x, 12));
    }
}

/* acc[h][j ..] += sum over the n rows of a chunk, `heads` x `blocks` (constants) blocks of columns from j. `edge` is the
 * mask of the last block. */
DP_INLINE void value_tile(const float *w, size_t w_stride, const row_pointers *pointers, size_t n, size_t d, size_t j,
                          float *acc, size_t heads, size_t blocks, __mmask32 edge, int prefetch, dp_type type)
{
    dp_block sum[4][4];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t b = 0; b < blocks; b++)
            sum[h][b] = (dp_block){_mm512_setzero_ps(), _mm512_setzero_ps()};
    }
    for (size_t i = 0; i < n; i++) {
        const char *const row = pointers->row[i];
        if (prefetch)
            prefetch_ahead(pointers, i, 1, d, type);
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
DP_INLINE void value_chunk(const float *w, size_t w_stride, const row_pointers *pointers, size_t n, size_t d,
                           float *acc, size_t heads, int prefetch, dp_type type)
{
    const size_t blocks = heads <= 2 ? 4 : 2;
    for (size_t j = 0; j < d;) {
        const size_t left = (d - j + DP_BLOCK - 1) / DP_BLOCK, taken = left >= blocks ? blocks : left >= 2 ? 2 : 1;
        const __mmask32 edge = dp_mask32(d - j - (taken - 1) * DP_BLOCK);
        const int ahead = prefetch && j == 0;
        if (taken == 4)
            value_tile(w, w_stride, pointers, n, d, j, acc, heads, 4, edge, ahead, type);
        else if (taken == 2)
            value_tile(w, w_stride, pointers, n, d, j, acc, heads, 2, edge, ahead, type);
        else
            value_tile(w, w_stride, pointers, n, d, j, acc, heads, 1, edge, ahead, type);
        j += taken * DP_BLOCK;
    }
}

DP_ROWS(f32, DP_F32, point_at_rows_8)
DP_ROWS(f16, DP_F16, point_at_rows_8)
DP_ROWS(bf16, DP_BF16, point_at_rows_8)

void dp_avx512_init_rows(dp_kernels *k)
{
    k->key_logits[DP_F32] = key_logits_f32;
    k->key_logits[DP_F16] = key_logits_f16;
    k->key_logits[DP_BF16] = key_logits_bf16;
    k->weighted_values[DP_F32] = weighted_values_f32;
    k->weighted_values[DP_F16] = weighted_values_f16;
    k->weighted_values[DP_BF16] = weighted_values_bf16;
}
