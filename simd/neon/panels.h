/* NEON scores of panels in f32: lanes are clusters, a panel is four vectors wide. A load holds four dimensions of 4 clusters,
 * which shifts move to the top of each lane and back, with their sign. */
#ifndef DP_SIMD_NEON_PANELS_H
#define DP_SIMD_NEON_PANELS_H

#include "neon.h"

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

#endif
