/* AVX2 clusters. Scores: lanes are clusters, a panel is two vectors wide. A load holds four dimensions of 8 clusters, which
 * shifts move to the top of each lane and back, with their sign; the queries are broadcast. */
#include "avx2.h"

#include "../mean_groups.h"

/* One panel for `heads` (a constant) heads. */
DP_INLINE void score_tile(const float *q, size_t d, const int8_t *panel, float *out, size_t out_stride, size_t heads)
{
    __m256 sum[4][2];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) sum[h][0] = sum[h][1] = _mm256_setzero_ps();
    for (size_t j = 0; j < d; j += 4) {
        __m256 x[2][4];
        _mm_prefetch((const char *)(panel + dp_panel_bytes(d) + j * DP_PANEL), _MM_HINT_T0); /* the next panel's */
        DP_UNROLL
        for (size_t half = 0; half < 2; half++) {
            const __m256i quads = _mm256_load_si256((const __m256i *)(const void *)(panel + j * DP_PANEL + 32 * half));
            x[half][0] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(quads, 24), 24));
            x[half][1] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(quads, 16), 24));
            x[half][2] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(quads, 8), 24));
            x[half][3] = _mm256_cvtepi32_ps(_mm256_srai_epi32(quads, 24));
        }
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            DP_UNROLL
            for (size_t i = 0; i < 4; i++) {
                const __m256 element = _mm256_set1_ps(q[h * d + j + i]);
                sum[h][0] = _mm256_fmadd_ps(element, x[0][i], sum[h][0]);
                sum[h][1] = _mm256_fmadd_ps(element, x[1][i], sum[h][1]);
            }
        }
    }
    const float *step = (const float *)(const void *)(panel + d * DP_PANEL);
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t half = 0; half < 2; half++)
            _mm256_storeu_ps(out + h * out_stride + 8 * half,
                             _mm256_mul_ps(_mm256_load_ps(step + 8 * half), sum[h][half]));
    }
}

static void score_panels(const float *q, size_t heads, size_t d, const int8_t *panels, size_t n_panels, float *out,
                         size_t out_stride)
{
    for (size_t p = 0; p < n_panels; p++)
        for (size_t h = 0; h < heads; h += 4) {
            const int8_t *panel = panels + p * dp_panel_bytes(d);
            const float *q_h = q + h * d;
            float *scores = out + h * out_stride + p * DP_PANEL;
            switch (heads - h) {
            case 1: score_tile(q_h, d, panel, scores, out_stride, 1); break;
            case 2: score_tile(q_h, d, panel, scores, out_stride, 2); break;
            case 3: score_tile(q_h, d, panel, scores, out_stride, 3); break;
            default: score_tile(q_h, d, panel, scores, out_stride, 4); break;
            }
        }
}

/* Sums of `heads` (a constant) heads over dimensions j to j + 7 stay in registers while the rows go by. */
DP_INLINE void mean_block(const float *w, size_t w_stride, mean_rows m, size_t j, float *acc, size_t heads)
{
    __m256 sum[4];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) sum[h] = _mm256_loadu_ps(acc + h * m.d + j);
    for (size_t i = 0; i < m.n; i++) {
        fetch_mean(m, i);
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)((const int8_t *)dp_row_address(m.rows[i]) + j));
        const __m256 x = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) sum[h] = _mm256_fmadd_ps(_mm256_set1_ps(w[h * w_stride + i]), x, sum[h]);
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) _mm256_storeu_ps(acc + h * m.d + j, sum[h]);
}

static void weighted_means(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,
                           size_t ahead, size_t d, float *acc)
{
    means_in_blocks(w, w_stride, heads, rows, n, ahead, d, acc, 8, mean_block);
}

void dp_avx2_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
    k->weighted_means = weighted_means;
}
