/* Nearest centroids of points, both in bytes, for NEON's dot products: four times as many products an instruction as in f32,
 * and they never leave the registers. */
#ifndef DP_SIMD_NEON_NEAREST_H
#define DP_SIMD_NEON_NEAREST_H

#include <string.h>

#include "lanes.h"

enum { POINTS = 4, QUADS = DP_PANEL / 4 }; /* 16 sums, 4 centroids' bytes and 4 points' in 32 registers */

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

/* POINTS points. */
DP_INLINE void search_panels(const int8_t *x, const float *scale, const uint8_t *panels, const float *step,
                             const float *half_norm, size_t n_means, size_t d, uint32_t nearest[POINTS])
{
    lanes found[POINTS];
    for (size_t i = 0; i < POINTS; i++) found[i] = start_lanes();
    for (size_t c = 0; c < n_means; c += DP_PANEL) {
        int32x4_t sum[POINTS][QUADS];
        multiply_panel(x, d, panels + c * d, sum);
        for (size_t v = 0; v < QUADS && c + 4 * v < n_means; v++) {
            const size_t first = c + 4 * v, left = n_means - first;
            const float32x4_t steps = dp_load_first(step + first, left), norms = dp_load_first(half_norm + first, left);
            DP_UNROLL
            for (size_t i = 0; i < POINTS; i++) {
                const float32x4_t product = vmulq_f32(steps, vcvtq_f32_s32(sum[i][v]));
                found[i] = better_lanes(found[i], left, vsubq_f32(vmulq_n_f32(product, scale[i]), norms), first);
            }
        }
    }
    float best;
    for (size_t i = 0; i < POINTS; i++) nearest[i] = (uint32_t)best_lane(found[i], &best);
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
