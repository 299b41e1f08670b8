/* Nearest centroids of points, both in bytes, for NEON's dot products: four times as many products an instruction as in f32,
 * and they never leave the registers. */
#ifndef DP_SIMD_NEON_NEAREST_H
#define DP_SIMD_NEON_NEAREST_H

#include <math.h>
#include <string.h>

#include "neon.h"

enum { POINTS = 4, QUADS = DP_PANEL / 4 }; /* 16 sums, 4 centroids' bytes and 4 points' in 32 registers */

/* Of each lane the best so far, and which cluster that is. */
typedef struct best_of_lanes {
    float32x4_t largest;
    uint32x4_t winner;
} best_of_lanes;

/* The sums of the points' products with the clusters of a panel, whose elements have 128 more: that is the sign's bit. */
DP_INLINE void multiply_panel(const int8_t *x, size_t d, const uint8_t *panel, int32x4_t sum[POINTS][QUADS])
{
    DP_UNROLL
    for (size_t k = 0; k < POINTS * QUADS; k++) sum[k / QUADS][k % QUADS] = vdupq_n_s32(0);
    for (size_t j = 0; j < d; j += 8) {
        int8x8_t eight[POINTS];
        DP_UNROLL
        for (size_t i = 0; i < POINTS; i++) eight[i] = vld1_s8(x + i * d + j);
        DP_UNROLL
        for (size_t v = 0; v < QUADS; v++) {
            const uint8_t *const at = panel + j * DP_PANEL + 16 * v;
            const int8x16_t first = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at), vdupq_n_u8(128)));
            const int8x16_t second = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + 4 * DP_PANEL), vdupq_n_u8(128)));
            DP_UNROLL
            for (size_t i = 0; i < POINTS; i++) {
                sum[i][v] = vdotq_lane_s32(sum[i][v], first, eight[i], 0);
                sum[i][v] = vdotq_lane_s32(sum[i][v], second, eight[i], 1);
            }
        }
    }
}

/* The best of all lanes: the first cluster of those that are equal. */
DP_INLINE uint32_t best_of_all(best_of_lanes found)
{
    float largest[4];
    uint32_t winner[4];
    vst1q_f32(largest, found.largest);
    vst1q_u32(winner, found.winner);
    size_t lane = 0;
    for (size_t i = 1; i < 4; i++)
        if (largest[i] > largest[lane] || (largest[i] == largest[lane] && winner[i] < winner[lane])) lane = i;
    return winner[lane];
}

/* POINTS points. */
DP_INLINE void search_panels(const int8_t *x, const float *scale, const uint8_t *panels, const float *step,
                             const float *half_norm, size_t n_means, size_t d, uint32_t nearest[POINTS])
{
    static const uint32_t lanes[4] = {0, 1, 2, 3};
    best_of_lanes found[POINTS];
    for (size_t i = 0; i < POINTS; i++) found[i] = (best_of_lanes){vdupq_n_f32(-INFINITY), vdupq_n_u32(0)};
    for (size_t c = 0; c < n_means; c += DP_PANEL) {
        int32x4_t sum[POINTS][QUADS];
        multiply_panel(x, d, panels + c * d, sum);
        for (size_t v = 0; v < QUADS && c + 4 * v < n_means; v++) {
            const size_t first = c + 4 * v, left = n_means - first;
            const float32x4_t steps = dp_load_first(step + first, left), norms = dp_load_first(half_norm + first, left);
            const uint32x4_t position = vaddq_u32(vdupq_n_u32((uint32_t)first), vld1q_u32(lanes));
            DP_UNROLL
            for (size_t i = 0; i < POINTS; i++) {
                const float32x4_t product = vmulq_f32(steps, vcvtq_f32_s32(sum[i][v]));
                const float32x4_t value = vsubq_f32(vmulq_n_f32(product, scale[i]), norms);
                uint32x4_t better = vcgtq_f32(value, found[i].largest);
                if (left < 4) better = vandq_u32(better, dp_mask4(left));
                found[i].largest = vbslq_f32(better, value, found[i].largest);
                found[i].winner = vbslq_u32(better, position, found[i].winner);
            }
        }
    }
    for (size_t i = 0; i < POINTS; i++) nearest[i] = best_of_all(found[i]);
}

static void nearest_in_bytes(const int8_t *x, const float *scale, size_t n, const uint8_t *panels, const float *step,
                             const float *half_norm, size_t n_means, size_t d, uint32_t *nearest)
{
    size_t i = 0;
    for (; i + POINTS <= n; i += POINTS)
        search_panels(x + i * d, scale + i, panels, step, half_norm, n_means, d, nearest + i);
    if (i == n) return;
    int8_t last[POINTS * DP_MAX_DIM] = {0}; /* what is left, and zeros */
    float last_scale[POINTS] = {0};
    uint32_t last_nearest[POINTS];
    memcpy(last, x + i * d, (n - i) * d);
    memcpy(last_scale, scale + i, (n - i) * sizeof *scale);
    search_panels(last, last_scale, panels, step, half_norm, n_means, d, last_nearest);
    memcpy(nearest + i, last_nearest, (n - i) * sizeof *nearest);
}

#endif
