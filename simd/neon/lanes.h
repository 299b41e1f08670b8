/* NEON search for the largest of many numbers, four at a time: what nearest and nearest_in_bytes share. */
#ifndef DP_SIMD_NEON_LANES_H
#define DP_SIMD_NEON_LANES_H

#include <math.h>

#include "neon.h"

/* The largest so far of each lane, and where it is. */
typedef struct lanes {
    float32x4_t largest;
    uint32x4_t winner;
} lanes;

DP_INLINE lanes start_lanes(void)
{
    return (lanes){vdupq_n_f32(-INFINITY), vdupq_n_u32(0)};
}

/* x: numbers i, i + 1, ... of which `left` are there. */
DP_INLINE lanes better_lanes(lanes l, size_t left, float32x4_t x, size_t i)
{
    static const uint32_t first[4] = {0, 1, 2, 3};
    uint32x4_t better = vcgtq_f32(x, l.largest);
    if (left < 4) better = vandq_u32(better, dp_mask4(left));
    return (lanes){vbslq_f32(better, x, l.largest),
                   vbslq_u32(better, vaddq_u32(vdupq_n_u32((uint32_t)i), vld1q_u32(first)), l.winner)};
}

/* The better of two in each lane; the first number of those that are equal. */
DP_INLINE lanes merge_lanes(lanes a, lanes b)
{
    const uint32x4_t first = vandq_u32(vceqq_f32(b.largest, a.largest), vcltq_u32(b.winner, a.winner));
    const uint32x4_t better = vorrq_u32(vcgtq_f32(b.largest, a.largest), first);
    return (lanes){vbslq_f32(better, b.largest, a.largest), vbslq_u32(better, b.winner, a.winner)};
}

DP_INLINE size_t best_lane(lanes l, float *best)
{
    float largest[4];
    uint32_t winner[4];
    vst1q_f32(largest, l.largest);
    vst1q_u32(winner, l.winner);
    size_t lane = 0;
    for (size_t i = 1; i < 4; i++)
        if (largest[i] > largest[lane] || (largest[i] == largest[lane] && winner[i] < winner[lane])) lane = i;
    *best = largest[lane];
    return winner[lane];
}

#endif
