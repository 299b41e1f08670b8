/* AVX-512 scores of panels in f32: lanes are the clusters of a panel. A 512-bit load holds four dimensions of 16 clusters,
 * which shifts move to the top of each lane and back, with their sign; the queries are broadcast. */
#ifndef DP_SIMD_AVX512_PANELS_H
#define DP_SIMD_AVX512_PANELS_H

#include "avx512.h"

/* A line of the next tile for each line that is worked on, in the order of their addresses: with the two panels' lines by
 * turns one thread gets 5.5 GB/s from memory where it gets 10.2 so. */
DP_INLINE void prefetch_line(const int8_t *panel, size_t d, size_t j, size_t p, size_t panels)
{
    _mm_prefetch((const char *)(panel + panels * (dp_panel_bytes(d) + j * DP_PANEL) + 64 * p), _MM_HINT_T0);
}

/* `heads` x `panels` sums; both are constants at every call. */
DP_INLINE void score_tile(const float *q, size_t d, const int8_t *panel, float *out, size_t out_stride, size_t heads,
                          size_t panels)
{
    const size_t bytes = dp_panel_bytes(d);
    __m512 sum[8][4];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t p = 0; p < panels; p++) sum[h][p] = _mm512_setzero_ps();
    }
    for (size_t j = 0; j < d; j += 4) {
        __m512 x[4][4];
        DP_UNROLL
        for (size_t p = 0; p < panels; p++) {
            const int8_t *line = panel + p * bytes + j * DP_PANEL;
            const __m512i quads = _mm512_load_si512(line);
            prefetch_line(panel, d, j, p, panels);
            x[p][0] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(quads, 24), 24));
            x[p][1] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(quads, 16), 24));
            x[p][2] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(quads, 8), 24));
            x[p][3] = _mm512_cvtepi32_ps(_mm512_srai_epi32(quads, 24));
        }
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            DP_UNROLL
            for (size_t i = 0; i < 4; i++) {
                const __m512 element = _mm512_set1_ps(q[h * d + j + i]);
                DP_UNROLL
                for (size_t p = 0; p < panels; p++) sum[h][p] = _mm512_fmadd_ps(element, x[p][i], sum[h][p]);
            }
        }
    }
    DP_UNROLL
    for (size_t p = 0; p < panels; p++) {
        const __m512 step = _mm512_load_ps(panel + p * bytes + d * DP_PANEL);
        DP_UNROLL
        for (size_t h = 0; h < heads; h++)
            _mm512_storeu_ps(out + h * out_stride + p * DP_PANEL, _mm512_mul_ps(step, sum[h][p]));
    }
}

DP_INLINE void score_heads(const float *q, size_t d, const int8_t *panel, float *out, size_t out_stride, size_t heads,
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

static void score_panels(const float *q, size_t heads, size_t d, const int8_t *panels, size_t n_panels, float *out,
                         size_t out_stride)
{
    const size_t bytes = dp_panel_bytes(d);
    size_t p = 0;
    if (heads <= 2) /* few heads: more panels at once for as many independent sums */
        for (; p + 4 <= n_panels; p += 4) {
            if (heads == 1)
                score_tile(q, d, panels + p * bytes, out + p * DP_PANEL, out_stride, 1, 4);
            else if (heads == 2)
                score_tile(q, d, panels + p * bytes, out + p * DP_PANEL, out_stride, 2, 4);
        }
    while (p < n_panels) {
        const size_t width = n_panels - p < 2 ? 1 : 2;
        for (size_t h = 0; h < heads; h += 8) {
            const size_t tile = heads - h < 8 ? heads - h : 8;
            const int8_t *panel = panels + p * bytes;
            float *scores = out + h * out_stride + p * DP_PANEL;
            if (width == 2)
                score_heads(q + h * d, d, panel, scores, out_stride, tile, 2);
            else
                score_heads(q + h * d, d, panel, scores, out_stride, tile, 1);
        }
        p += width;
    }
}

#endif
