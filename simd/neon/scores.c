/* NEON clusters: scores and mean values. */
#include "panels.h"

#include "../mean_groups.h"

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
        fetch_mean(m, i);
        const int16x8_t wide = vmovl_s8(vld1_s8((const int8_t *)dp_row_address(m.rows[i]) + j));
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

static void weighted_means(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,
                           size_t ahead, size_t d, float *acc)
{
    means_in_blocks(w, w_stride, heads, rows, n, ahead, d, acc, 8, mean_block);
}

void dp_neon_init_scores(dp_kernels *k)
{
    k->score_panels = score_panels;
    k->weighted_means = weighted_means;
}
