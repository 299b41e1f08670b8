/* AVX-512 centroid scores: lanes are the clusters of a panel. A 512-bit load holds a pair of dimensions of 16 clusters:
 * the even one by a shift, the odd one by a mask; the queries are broadcast. */
#include "avx512.h"

/* `heads` x `panels` accumulators; both are constants at every call. */
DP_INLINE void score_tile(const float *q, size_t d, const uint16_t *panel, float *out, size_t out_stride, size_t heads,
                          size_t panels)
{
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    __m512 sum[8][4];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t p = 0; p < panels; p++)
            sum[h][p] = _mm512_setzero_ps();
    }
    for (size_t j = 0; j < d; j += 2) {
        __m512 even[4], odd[4];
        DP_UNROLL
        for (size_t p = 0; p < panels; p++) {
            const uint16_t *line = panel + (p * d + j) * DP_PANEL;
            const __m512i pairs = _mm512_load_si512(line);
            _mm_prefetch((const char *)(line + panels * d * DP_PANEL), _MM_HINT_T0); /* the next tile's */
            even[p] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
            odd[p] = _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
        }
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            const __m512 q_even = _mm512_set1_ps(q[h * d + j]), q_odd = _mm512_set1_ps(q[h * d + j + 1]);
            DP_UNROLL
            for (size_t p = 0; p < panels; p++) {
                sum[h][p] = _mm512_fmadd_ps(q_even, even[p], sum[h][p]);
                sum[h][p] = _mm512_fmadd_ps(q_odd, odd[p], sum[h][p]);
            }
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t p = 0; p < panels; p++)
            _mm512_storeu_ps(out + h * out_stride + p * DP_PANEL, sum[h][p]);
    }
}

DP_INLINE void score_heads(const float *q, size_t d, const uint16_t *panel, float *out, size_t out_stride, size_t heads,
                           size_t panels)
{
    switch (heads) {
    case 1: score_tile(q, d, panel, out, out_stride, 1, panels); break;
    case 2: score_tile(q, d, panel, out, out_stride, 2, panels); break;
    case 3: score_tile(q, d, panel, out, out_stride, 3, panels); break;
    case 4: score_tile(q, d, panel, out, out_stride, 4, panels); break;
    case 5: score_tile(q, d, panel, out, out_stride, 5, panels); break;
    case 6: score_tile(q, d, panel, out, out_stride, 6, panels); break;
    case 7: score_tile(q, d, panel, out, out_stride, 7, panels); break;
    case 8: score_tile(q, d, panel, out, out_stride, 8, panels); break;
    }
}

static void score_panels(const float *q, size_t heads, size_t d, const uint16_t *panels, size_t n_panels, float *out,
                         size_t out_stride)
{
    size_t p = 0;
    if (heads <= 2) /* few heads: more panels at once for as many independent sums */
        for (; p + 4 <= n_panels; p += 4) {
            if (heads == 1)
                score_tile(q, d, panels + p * DP_PANEL * d, out + p * DP_PANEL, out_stride, 1, 4);
            else if (heads == 2)
                score_tile(q, d, panels + p * DP_PANEL * d, out + p * DP_PANEL, out_stride, 2, 4);
        }
    while (p < n_panels) {
        const size_t width = n_panels - p < 2 ? 1 : 2;
        for (size_t h = 0; h < heads; h += 8) {
            const size_t tile = heads - h < 8 ? heads - h : 8;
            const uint16_t *panel = panels + p * DP_PANEL * d;
            float *scores = out + h * out_stride + p * DP_PANEL;
            if (width == 2)
                score_heads(q + h * d, d, panel, scores, out_stride, tile, 2);
            else
                score_heads(q + h * d, d, panel, scores, out_stride, tile, 1);
        }
        p += width;
    }
}

void dp_avx512_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
}
