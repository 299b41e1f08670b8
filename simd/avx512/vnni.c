/* AVX512-VNNI: what multiplies bytes, in one instruction. */
#include "codes.h"
#include "nearest.h"
#include "panels.h"

#include "../query_bytes.h"

DP_INLINE dp_words dot4(dp_words sum, __m512i small, __m512i q)
{
    return (dp_words)_mm512_dpbusd_epi32((__m512i)sum, small, q);
}

DP_CODES

/* Panels from the one at work to the one whose lines are asked for, in each of two streams: a panel of d 64 is worked on for 90
 * ns, memory takes 150. (128K tokens: with 1 a step takes 1.01 to 1.15 times as long where there are 2 KV heads of d 64, 1.01 to
 * 1.06 times with 8 of d 128. With 8, scores take longer again.) */
enum { PANELS_AHEAD = 4 };

/* Scores of `heads` heads from number h on x `panels` panels, `gap` panels apart; the counts are constants. One factor has to
 * be without a sign: centroids get 128 more, which the sums of the queries take off again. */
DP_INLINE void byte_tile(const query_bytes *q, size_t h, size_t d, const int8_t *panel, float *out, size_t out_stride,
                         size_t gap, size_t heads, size_t panels)
{
    const size_t bytes = dp_panel_bytes(d);
    dp_words high[HEADS][2], low[HEADS][2];
    DP_UNROLL
    for (size_t i = 0; i < heads; i++) {
        DP_UNROLL
        for (size_t p = 0; p < panels; p++) high[i][p] = low[i][p] = (dp_words)_mm512_setzero_si512();
    }
    for (size_t j = 0; j < d; j += 4) {
        __m512i x[2];
        DP_UNROLL
        for (size_t p = 0; p < panels; p++) {
            const int8_t *const line = panel + p * gap * bytes + j * DP_PANEL;
            x[p] = _mm512_xor_si512(_mm512_load_si512(line), _mm512_set1_epi8(-128));
            _mm_prefetch((const char *)(line + PANELS_AHEAD * bytes), _MM_HINT_T0);
        }
        DP_UNROLL
        for (size_t i = 0; i < heads; i++) {
            const __m512i upper = _mm512_set1_epi32(four_bytes(q->high[h + i] + j));
            const __m512i lower = _mm512_set1_epi32(four_bytes(q->low[h + i] + j));
            DP_UNROLL
            for (size_t p = 0; p < panels; p++) {
                high[i][p] = dot4(high[i][p], x[p], upper);
                low[i][p] = dot4(low[i][p], x[p], lower);
            }
        }
    }
    DP_UNROLL
    for (size_t p = 0; p < panels; p++) {
        const __m512 step = _mm512_load_ps(panel + p * gap * bytes + d * DP_PANEL);
        DP_UNROLL
        for (size_t i = 0; i < heads; i++) {
            const __m512 upper =
                _mm512_cvtepi32_ps((__m512i)(high[i][p] - 128 * q->sum_high[h + i]));
            const __m512 lower =
                _mm512_cvtepi32_ps((__m512i)(low[i][p] - 128 * q->sum_low[h + i]));
            const __m512 sum = _mm512_fmadd_ps(upper, _mm512_set1_ps(256), lower);
            _mm512_storeu_ps(out + (h + i) * out_stride + p * gap * DP_PANEL,
                             _mm512_mul_ps(step, _mm512_mul_ps(_mm512_set1_ps(q->unit[h + i]), sum)));
        }
    }
}

DP_INLINE void byte_heads(const query_bytes *q, size_t heads, size_t d, const int8_t *panel, float *out,
                          size_t out_stride, size_t gap, size_t panels)
{
    size_t h = 0;
    for (; h + HEADS <= heads; h += HEADS) byte_tile(q, h, d, panel, out, out_stride, gap, HEADS, panels);
    switch (heads - h) {
    case 3: byte_tile(q, h, d, panel, out, out_stride, gap, 3, panels); break;
    case 2: byte_tile(q, h, d, panel, out, out_stride, gap, 2, panels); break;
    case 1: byte_tile(q, h, d, panel, out, out_stride, gap, 1, panels); break;
    }
}

/* The first half's panels together with the second half's: in two streams a thread gets 9.3 GB/s from memory, in one, with
 * neighbouring panels together, 8.2 (131072 tokens of 8 KV heads, segments of 40 to 100 KiB). */
static void byte_scores(const query_bytes *b, size_t n, size_t d, const int8_t *panels, size_t n_panels, float *out,
                        size_t out_stride)
{
    const size_t bytes = dp_panel_bytes(d);
    const size_t half = n_panels / 2;
    for (size_t p = 0; p < half; p++)
        byte_heads(b, n, d, panels + p * bytes, out + p * DP_PANEL, out_stride, half, 2);
    if (n_panels % 2) byte_heads(b, n, d, panels + 2 * half * bytes, out + 2 * half * DP_PANEL, out_stride, 0, 1);
}

/* A third of the arithmetic of score_panels in f32. d 128, four heads, one thread, panels in L1: 13.8 GB/s, not 6.1; from
 * memory 10.2, as fast as a stream. */
static void score_panels_in_bytes(const float *q, size_t heads, size_t d, const int8_t *panels, size_t n_panels,
                                  float *out, size_t out_stride)
{
    scores_in_bytes(q, heads, d, panels, n_panels, out, out_stride, byte_scores, score_panels);
}

void dp_kernels_init_avx512_vnni(dp_kernels *k)
{
    k->code_logits = code_logits;
    k->score_panels = score_panels_in_bytes;
    k->nearest_in_bytes = nearest_in_bytes;
}
