/* NEON centroid scores: lanes are clusters, a panel is four vectors wide. A load holds a pair of dimensions of 4 clusters:
 * the even one by a shift, the odd one by a mask. */
#include "neon.h"

/* One panel for `heads` (a constant) heads. Few heads sum even and odd dimensions apart, for more independent sums. */
DP_INLINE void score_tile(const float *q, size_t d, const uint16_t *panel, float *out, size_t out_stride, size_t heads)
{
    const size_t split = heads <= 2 ? heads : 0;
    const uint32x4_t upper = vdupq_n_u32(0xffff0000u);
    float32x4_t sum[4][4];
    DP_UNROLL
    for (size_t h = 0; h < heads + split; h++) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++)
            sum[h][v] = vdupq_n_f32(0);
    }
    for (size_t j = 0; j < d; j += 2) {
        float32x4_t even[4], odd[4];
        __builtin_prefetch(panel + (d + j) * DP_PANEL); /* the next panel's */
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) {
            const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(panel + j * DP_PANEL + 8 * v));
            even[v] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
            odd[v] = vreinterpretq_f32_u32(vandq_u32(pairs, upper));
        }
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            const float32x2_t pair = vld1_f32(q + h * d + j);
            DP_UNROLL
            for (size_t v = 0; v < 4; v++) {
                sum[h][v] = vfmaq_lane_f32(sum[h][v], even[v], pair, 0);
                sum[h + split][v] = vfmaq_lane_f32(sum[h + split][v], odd[v], pair, 1);
            }
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++)
            vst1q_f32(out + h * out_stride + 4 * v, split ? vaddq_f32(sum[h][v], sum[h + split][v]) : sum[h][v]);
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

void dp_neon_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
}
