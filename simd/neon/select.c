/* NEON stage 1 and nearest centroid: estimated logits and masses of clusters, and the sums that selection bisects. Lanes
 * past the end are loaded as 0: a size of 0, padding. */
#include "neon.h"

/* x where !(rank < bound), 0 elsewhere. */
DP_INLINE float32x4_t at_least(float32x4_t rank, float32x4_t bound, float32x4_t x)
{
    return dp_keep(vmvnq_u32(vcltq_f32(rank, bound)), x);
}

static float sum_at_least(const float *rank, const float *value, size_t n, float threshold)
{
    const float32x4_t bound = vdupq_n_f32(threshold);
    float32x4_t sum[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++)
        sum[v] = vdupq_n_f32(0);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++)
            sum[v] = vaddq_f32(sum[v], at_least(vld1q_f32(rank + i + 4 * v), bound, vld1q_f32(value + i + 4 * v)));
    }
    for (; i < n; i += 4) /* lanes past the end add a 0 */
        sum[0] = vaddq_f32(sum[0], at_least(dp_load_first(rank + i, n - i), bound, dp_load_first(value + i, n - i)));
    return dp_sum_lanes(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
}

static size_t nearest(const float *dot, const float *half_norm, size_t n, float *best)
{
    static const uint32_t first_lanes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    uint32x4_t position[2] = {vld1q_u32(first_lanes), vld1q_u32(first_lanes + 4)};
    uint32x4_t winner[2] = {vdupq_n_u32(0), vdupq_n_u32(0)};
    float32x4_t largest[2] = {vdupq_n_f32(-INFINITY), vdupq_n_f32(-INFINITY)};
    for (size_t i = 0; i < n; i += 8) {
        DP_UNROLL
        for (size_t v = 0; v < 2; v++) {
            const size_t left = n - i > 4 * v ? n - i - 4 * v : 0;
            const float32x4_t difference = vsubq_f32(dp_load_first(dot + i + 4 * v, left),
                                                     dp_load_first(half_norm + i + 4 * v, left));
            uint32x4_t better = vcgtq_f32(difference, largest[v]);
            if (left < 4)
                better = vandq_u32(better, dp_mask4(left));
            largest[v] = vbslq_f32(better, difference, largest[v]);
            winner[v] = vbslq_u32(better, position[v], winner[v]);
            position[v] = vaddq_u32(position[v], vdupq_n_u32(8));
        }
    }
    float lane_best[8];
    uint32_t lane_winner[8];
    DP_UNROLL
    for (size_t v = 0; v < 2; v++) {
        vst1q_f32(lane_best + 4 * v, largest[v]);
        vst1q_u32(lane_winner + 4 * v, winner[v]);
    }
    size_t lane = 0;
    for (size_t i = 1; i < 8; i++)
        if (lane_best[i] > lane_best[lane] ||
            (lane_best[i] == lane_best[lane] && lane_winner[i] < lane_winner[lane]))
            lane = i;
    *best = lane_best[lane];
    return lane_winner[lane];
}

void dp_neon_init_select(dp_kernels *k)
{
    k->sum_at_least = sum_at_least;
    k->nearest = nearest;
}
