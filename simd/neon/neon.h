/* What the NEON kernels share: partial loads and stores, loads of rows of any type in blocks of 8, the exponential,
 * reductions.
 *
 * A block of 8 elements becomes two f32 vectors, the first and the second half. NEON has no masked loads: what is left of a
 * vector at the end of an array is loaded and stored lane by lane, 0 in the others. */
#ifndef DP_SIMD_NEON_H
#define DP_SIMD_NEON_H

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "../exp_constants.h"
#include "../inline.h"
#include "../kernels.h"

enum { DP_BLOCK = 8 };

typedef struct dp_block {
    float32x4_t first, second;
} dp_block;

/* All ones in the first n lanes. */
DP_INLINE uint32x4_t dp_mask4(size_t n)
{
    static const uint32_t lanes[4] = {0, 1, 2, 3};
    return vcltq_u32(vld1q_u32(lanes), vdupq_n_u32(n < 4 ? (uint32_t)n : 4));
}

/* x where the mask is set, 0 elsewhere. */
DP_INLINE float32x4_t dp_keep(uint32x4_t mask, float32x4_t x)
{
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(x)));
}

/* The first n of 4 bf16 numbers, 0 in the other lanes; n >= 4 is all of them. */
DP_INLINE float32x4_t dp_load_first_bf16(const uint16_t *x, size_t n)
{
    uint16_t part[4] = {0};
    for (size_t i = 0; i < n && n < 4; i++)
        part[i] = x[i];
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(n >= 4 ? x : part), 16));
}

/* The first n of 4 numbers, 0 in the other lanes; n >= 4 is all of them. */
DP_INLINE float32x4_t dp_load_first(const float *x, size_t n)
{
    if (n >= 4)
        return vld1q_f32(x);
    float32x4_t value = vdupq_n_f32(0);
    if (n > 0)
        value = vld1q_lane_f32(x, value, 0);
    if (n > 1)
        value = vld1q_lane_f32(x + 1, value, 1);
    if (n > 2)
        value = vld1q_lane_f32(x + 2, value, 2);
    return value;
}

DP_INLINE void dp_store_first(float *x, size_t n, float32x4_t value)
{
    if (n >= 4) {
        vst1q_f32(x, value);
        return;
    }
    if (n > 0)
        vst1q_lane_f32(x, value, 0);
    if (n > 1)
        vst1q_lane_f32(x + 1, value, 1);
    if (n > 2)
        vst1q_lane_f32(x + 2, value, 2);
}

/* Elements j .. j + 7 of a row (int8: without its step). A bf16 number is the upper half of its f32: interleaved with zeros it is
 * widened. */
DP_INLINE dp_block dp_load_block(const void *row, size_t j, dp_type type)
{
    if (type == DP_F32) {
        const float *x = (const float *)row + j;
        return (dp_block){vld1q_f32(x), vld1q_f32(x + 4)};
    }
    if (type == DP_INT8) {
        const int16x8_t x = vmovl_s8(vld1_s8((const int8_t *)row + j));
        return (dp_block){vcvtq_f32_s32(vmovl_s16(vget_low_s16(x))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(x)))};
    }
    const uint16x8_t x = vld1q_u16((const uint16_t *)row + j);
    if (type == DP_F16) {
        const float16x8_t half = vreinterpretq_f16_u16(x);
        return (dp_block){vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
    }
    const uint16x8_t zeros = vdupq_n_u16(0);
    return (dp_block){vreinterpretq_f32_u16(vzip1q_u16(zeros, x)), vreinterpretq_f32_u16(vzip2q_u16(zeros, x))};
}

/* Lane i of the result is the sum of the lanes of v[i], i < 4. */
DP_INLINE float32x4_t dp_sum_lanes_4(const float32x4_t v[4])
{
    return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
}

DP_INLINE float dp_sum_lanes(float32x4_t x)
{
    const float32x4_t pairs = vpaddq_f32(x, x);
    return vgetq_lane_f32(vpaddq_f32(pairs, pairs), 0);
}

/* The larger in each lane; `so_far`, which is not NaN, where x is NaN. (FMAXNM makes a NaN of a signalling one.) */
DP_INLINE float32x4_t dp_larger(float32x4_t so_far, float32x4_t x)
{
    return vbslq_f32(vcgtq_f32(x, so_far), x, so_far);
}

typedef struct dp_exp_parts {
    int32x4_t n;
    float32x4_t tail; /* exp(x) = 2^n (1 + tail) */
} dp_exp_parts;

DP_INLINE dp_exp_parts dp_exp_split(float32x4_t x)
{
    const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(DP_LOG2_E)));
    const float32x4_t high = vfmsq_f32(x, n, vdupq_n_f32(DP_LN2_HIGH));
    const float32x4_t r = vfmsq_f32(high, n, vdupq_n_f32(DP_LN2_LOW));
    float32x4_t p = vdupq_n_f32(DP_EXP_C5);
    p = vfmaq_f32(vdupq_n_f32(DP_EXP_C4), p, r);
    p = vfmaq_f32(vdupq_n_f32(DP_EXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(DP_EXP_C2), p, r);
    p = vfmaq_f32(vdupq_n_f32(DP_EXP_C1), p, r);
    p = vfmaq_f32(vdupq_n_f32(DP_EXP_C0), p, r);
    return (dp_exp_parts){vcvtq_s32_f32(n), vmulq_f32(p, r)};
}

/* 2^n for -126 <= n <= 127, anything outside. */
DP_INLINE float32x4_t dp_power_of_2(int32x4_t n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

/* exp(x); 0 below DP_EXP_LOWEST. FMIN gives NaN where either is NaN: NaN stays. The power of 2 is applied in halves, for n
 * can be 128. */
DP_INLINE float32x4_t dp_exp(float32x4_t x)
{
    const uint32x4_t zero = vcltq_f32(x, vdupq_n_f32(DP_EXP_LOWEST));
    const dp_exp_parts parts = dp_exp_split(vminq_f32(vdupq_n_f32(DP_EXP_LARGEST), x));
    const int32x4_t half = vshrq_n_s32(parts.n, 1);
    const float32x4_t scaled = vmulq_f32(vaddq_f32(parts.tail, vdupq_n_f32(1)), dp_power_of_2(half));
    return dp_keep(vmvnq_u32(zero), vmulq_f32(scaled, dp_power_of_2(vsubq_s32(parts.n, half))));
}

/* expm1(x) for x >= 0, to a few ulp; large enough above 80; NaN stays. */
DP_INLINE float32x4_t dp_bounded_expm1(float32x4_t x)
{
    const dp_exp_parts parts = dp_exp_split(vminq_f32(vdupq_n_f32(80), x));
    const float32x4_t power = dp_power_of_2(parts.n);
    return vfmaq_f32(vsubq_f32(power, vdupq_n_f32(1)), power, parts.tail);
}

void dp_neon_init_convert(dp_kernels *k);
void dp_neon_init_scores(dp_kernels *k);
void dp_neon_init_codes(dp_kernels *k);
void dp_neon_init_signs(dp_kernels *k);
void dp_neon_init_rows(dp_kernels *k);
void dp_neon_init_softmax(dp_kernels *k);
void dp_neon_init_select(dp_kernels *k);
void dp_neon_init_dense(dp_kernels *k);

#endif
