/* NEON with the dot product instructions (ARMv8.4, optional from 8.2): four products of bytes and their sum a lane, for keys
 * in few bits, for centroids and for clustering. Of the other optional instructions, FEAT_FP16's arithmetic is not used: sums
 * in f16 would lose what the accuracy of the kernels' contracts needs, and conversion from f16 is in the base instructions. */
#include "codes.h"
#include "nearest.h"
#include "panels.h"

#include "../query_bytes.h"

DP_INLINE dot4_sum add(dot4_sum sum, int8x16_t small, int8x16_t q)
{
    sum.part[0] = vdotq_s32(sum.part[0], small, q);
    return sum;
}

DP_INLINE int32x4_t total(dot4_sum sum)
{
    return sum.part[0];
}

static void code_logits(const dp_code_queries *q, const dp_code_tokens *t, float *out, size_t out_stride)
{
    code_logits_by(q, t, out, out_stride, (dot4){add, total});
}

/* A panel's scores of `heads` (a constant) heads from number h on. */
DP_INLINE void byte_tile(const query_bytes *q, size_t h, size_t d, const int8_t *panel, float *out, size_t out_stride,
                         size_t heads)
{
    int32x4_t high[2][4], low[2][4];
    DP_UNROLL
    for (size_t i = 0; i < heads; i++) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) high[i][v] = low[i][v] = vdupq_n_s32(0);
    }
    for (size_t j = 0; j < d; j += 4) {
        __builtin_prefetch(panel + dp_panel_bytes(d) + j * DP_PANEL); /* the next panel's */
        int8x16_t x[4];
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) x[v] = vld1q_s8(panel + j * DP_PANEL + 16 * v);
        DP_UNROLL
        for (size_t i = 0; i < heads; i++) {
            const int8x16_t upper = vreinterpretq_s8_s32(vdupq_n_s32(four_bytes(q->high[h + i] + j)));
            const int8x16_t lower = vreinterpretq_s8_s32(vdupq_n_s32(four_bytes(q->low[h + i] + j)));
            DP_UNROLL
            for (size_t v = 0; v < 4; v++) {
                high[i][v] = vdotq_s32(high[i][v], x[v], upper);
                low[i][v] = vdotq_s32(low[i][v], x[v], lower);
            }
        }
    }
    const float *const step = (const float *)(const void *)(panel + d * DP_PANEL);
    DP_UNROLL
    for (size_t i = 0; i < heads; i++) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) {
            const float32x4_t sum = vfmaq_n_f32(vcvtq_f32_s32(low[i][v]), vcvtq_f32_s32(high[i][v]), 256);
            vst1q_f32(out + (h + i) * out_stride + 4 * v,
                      vmulq_f32(vld1q_f32(step + 4 * v), vmulq_n_f32(sum, q->unit[h + i])));
        }
    }
}

static void byte_scores(const query_bytes *b, size_t n, size_t d, const int8_t *panels, size_t n_panels, float *out,
                        size_t out_stride)
{
    for (size_t p = 0; p < n_panels; p++) {
        const int8_t *const panel = panels + p * dp_panel_bytes(d);
        for (size_t i = 0; i + 2 <= n; i += 2) byte_tile(b, i, d, panel, out + p * DP_PANEL, out_stride, 2);
        if (n % 2) byte_tile(b, n - 1, d, panel, out + p * DP_PANEL, out_stride, 1);
    }
}

static void score_panels_in_bytes(const float *q, size_t heads, size_t d, const int8_t *panels, size_t n_panels,
                                  float *out, size_t out_stride)
{
    scores_in_bytes(q, heads, d, panels, n_panels, out, out_stride, byte_scores, score_panels);
}

void dp_kernels_init_neon_dotprod(dp_kernels *k)
{
    k->code_logits = code_logits;
    k->score_panels = score_panels_in_bytes;
    k->nearest_in_bytes = nearest_in_bytes;
}
