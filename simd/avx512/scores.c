/* AVX-512 clusters. Scores: lanes are the clusters of a panel. A 512-bit load holds four dimensions of 16 clusters, which
 * shifts move to the top of each lane and back, with their sign; the queries are broadcast. */
#include "avx512.h"

#include "../mean_groups.h"

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
            _mm_prefetch((const char *)(line + panels * bytes), _MM_HINT_T0); /* the next tile's */
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
        const int8_t *const row = (const int8_t *)m.rows[i] + j;
        fetch_mean(m, i, j);
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

static void weighted_means(const float *w, size_t w_stride, size_t heads, const void *const *rows, size_t n,
                           size_t ahead, size_t d, float *acc)
{
    means_in_blocks(w, w_stride, heads, (mean_rows){.rows = rows, .n = n, .ahead = ahead, .d = d}, acc, 64, mean_block);
}

void dp_avx512_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
    k->weighted_means = weighted_means;
}
