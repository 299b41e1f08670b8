/* AVX-512 clusters: scores and mean values. */
#include "panels.h"

#include "../mean_groups.h"

/* Sums of `heads` (a constant) heads over dimensions j to j + 63, masked or all of them, stay in registers while the rows go
 * by. */
DP_INLINE void mean_columns(const float *w, size_t w_stride, mean_rows m, size_t j, float *acc, size_t heads,
                            int masked)
{
    __mmask16 mask[4];
    __m512 sum[4][4];
    DP_UNROLL
    for (size_t b = 0; b < 4; b++) {
        mask[b] = !masked ? 0xffff : m.d - j > 16 * b ? dp_mask16(m.d - j - 16 * b) : 0;
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) sum[h][b] = _mm512_maskz_loadu_ps(mask[b], acc + h * m.d + j + 16 * b);
    }
    for (size_t i = 0; i < m.n; i++) {
        const int8_t *const row = (const int8_t *)dp_row_address(m.rows[i]) + j;
        fetch_mean(m, i);
        __m512 x[4];
        DP_UNROLL
        for (size_t b = 0; b < 4; b++) {
            const __m128i bytes = masked ? _mm_maskz_loadu_epi8(mask[b], row + 16 * b)
                                         : _mm_loadu_si128((const __m128i *)(const void *)(row + 16 * b));
            x[b] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        }
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            const __m512 weight = _mm512_set1_ps(w[h * w_stride + i]);
            DP_UNROLL
            for (size_t b = 0; b < 4; b++) sum[h][b] = _mm512_fmadd_ps(weight, x[b], sum[h][b]);
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t b = 0; b < 4; b++) _mm512_mask_storeu_ps(acc + h * m.d + j + 16 * b, mask[b], sum[h][b]);
    }
}

DP_INLINE void mean_block(const float *w, size_t w_stride, mean_rows m, size_t j, float *acc, size_t heads)
{
    if (m.d - j >= 64)
        mean_columns(w, w_stride, m, j, acc, heads, 0);
    else
        mean_columns(w, w_stride, m, j, acc, heads, 1);
}

static void weighted_means(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,
                           size_t ahead, size_t d, float *acc)
{
    means_in_blocks(w, w_stride, heads, rows, n, ahead, d, acc, 64, mean_block);
}

void dp_avx512_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
    k->weighted_means = weighted_means;
}
