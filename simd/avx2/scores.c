/* AVX2 centroid scores: lanes are clusters, a panel is two vectors wide. A load holds a pair of dimensions of 8 clusters:
 * the even one by a shift, the odd one by a mask; the queries are broadcast. */
#include "avx2.h"

/* One panel for `heads` (a constant) heads. Few heads sum even and odd dimensions apart, for more independent sums. */
DP_INLINE void score_tile(const float *q, size_t d, const uint16_t *panel, float *out, size_t out_stride, size_t heads)
{
    const size_t split = heads <= 2 ? 4 : 0;
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000u);
    __m256 sum[8][2];
    DP_UNROLL
    for (size_t h = 0; h < heads + split; h++)
        sum[h][0] = sum[h][1] = _mm256_setzero_ps();
    for (size_t j = 0; j < d; j += 2) {
        __m256 even[2], odd[2];
        _mm_prefetch((const char *)(panel + (d + j) * DP_PANEL), _MM_HINT_T0); /* the next panel's */
        DP_UNROLL
        for (size_t half = 0; half < 2; half++) {
            const __m256i pairs = _mm256_load_si256((const __m256i *)(const void *)(panel + j * DP_PANEL + 16 * half));
            even[half] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
            odd[half] = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
        }
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            const __m256 q_even = _mm256_set1_ps(q[h * d + j]), q_odd = _mm256_set1_ps(q[h * d + j + 1]);
            DP_UNROLL
            for (size_t half = 0; half < 2; half++) {
                sum[h][half] = _mm256_fmadd_ps(q_even, even[half], sum[h][half]);
                sum[h + split][half] = _mm256_fmadd_ps(q_odd, odd[half], sum[h + split][half]);
            }
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t half = 0; half < 2; half++) {
            const __m256 total = split ? _mm256_add_ps(sum[h][half], sum[h + split][half]) : sum[h][half];
            _mm256_storeu_ps(out + h * out_stride + 8 * half, total);
        }
    }
}

static void score_panels(const float *q, size_t heads, size_t d, const uint16_t *panels, size_t n_panels, float *out,
                         size_t out_stride)
{
    for (size_t p = 0; p < n_panels; p++)
        for (size_t h = 0; h < heads; h += 4) {
            const uint16_t *panel = panels + p * DP_PANEL * d;
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

void dp_avx2_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
}
