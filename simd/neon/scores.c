/* NEON clusters. Scores: lanes are clusters, a panel is four vectors wide. A load holds four dimensions of 4 clusters, which
 * shifts move to the top of each lane and back, with their sign. */
#include "neon.h"

#include "../mean_groups.h"

/* One panel for `heads` (a constant) heads. */
DP_INLINE void score_tile(const float *q, size_t d, const int8_t *panel, float *out, size_t out_stride, size_t heads)
{
    float32x4_t sum[4][4];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) sum[h][v] = vdupq_n_f32(0);
    }
    for (size_t j = 0; j < d; j += 4) {
        __builtin_prefetch(panel + dp_panel_bytes(d) + j * DP_PANEL); /* the next panel's */
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) {
            const int32x4_t quads = vreinterpretq_s32_s8(vld1q_s8(panel + j * DP_PANEL + 16 * v));
            const float32x4_t x0 = vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(quads, 24), 24));
            const float32x4_t x1 = vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(quads, 16), 24));
            const float32x4_t x2 = vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(quads, 8), 24));
            const float32x4_t x3 = vcvtq_f32_s32(vshrq_n_s32(quads, 24));
            DP_UNROLL
            for (size_t h = 0; h < heads; h++) {
                const float32x4_t elements = vld1q_f32(q + h * d + j);
                sum[h][v] = vfmaq_laneq_f32(sum[h][v], x0, elements, 0);
                sum[h][v] = vfmaq_laneq_f32(sum[h][v], x1, elements, 1);
                sum[h][v] = vfmaq_laneq_f32(sum[h][v], x2, elements, 2);
                sum[h][v] = vfmaq_laneq_f32(sum[h][v], x3, elements, 3);
            }
        }
    }
    const float *step = (const float *)(const void *)(panel + d * DP_PANEL);
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++)
            vst1q_f32(out + h * out_stride + 4 * v, vmulq_f32(vld1q_f32(step + 4 * v), sum[h][v]));
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
    float32x4_t sum[4][2];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        sum[h][0] = vld1q_f32(acc + h * m.d + j);
        sum[h][1] = vld1q_f32(acc + h * m.d + j + 4);
    }
    for (size_t i = 0; i < m.n; i++) {
        fetch_mean(m, i, j);
        const int16x8_t wide = vmovl_s8(vld1_s8((const int8_t *)m.rows[i] + j));
        const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
        const float32x4_t high = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)));
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            sum[h][0] = vfmaq_n_f32(sum[h][0], low, w[h * w_stride + i]);
            sum[h][1] = vfmaq_n_f32(sum[h][1], high, w[h * w_stride + i]);
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        vst1q_f32(acc + h * m.d + j, sum[h][0]);
        vst1q_f32(acc + h * m.d + j + 4, sum[h][1]);
    }
}

static void weighted_means(const float *w, size_t w_stride, size_t heads, const void *const *rows, size_t n,
                           size_t ahead, size_t d, float *acc)
{
    means_in_blocks(w, w_stride, heads, (mean_rows){.rows = rows, .n = n, .ahead = ahead, .d = d}, acc, 8, mean_block);
}

void dp_neon_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
    k->weighted_means = weighted_means;
}
