/* NEON conversion between f32 and the storage types. */
#include "neon.h"

#include "../int8_rows.h"

#include "../half.h"

DP_INLINE void to_f32(float *dst, const void *src, size_t n, dp_type type)
{
    size_t i = 0;
    for (; i + DP_BLOCK <= n; i += DP_BLOCK) {
        const dp_block x = dp_load_block(src, i, type);
        vst1q_f32(dst + i, x.first);
        vst1q_f32(dst + i + 4, x.second);
    }
    for (; i < n; i++) {
        const uint16_t x = ((const uint16_t *)src)[i];
        dst[i] = type == DP_F16 ? dp_f32_from_f16(x) : dp_f32_from_bf16(x);
    }
}

static void to_f32_from_f16(float *dst, const void *src, size_t n)
{
    to_f32(dst, src, n, DP_F16);
}

static void to_f32_from_bf16(float *dst, const void *src, size_t n)
{
    to_f32(dst, src, n, DP_BF16);
}

static void from_f32_to_f16(void *dst, const float *src, size_t n)
{
    uint16_t *half = dst;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const float16x4_t low = vcvt_f16_f32(vld1q_f32(src + i));
        vst1q_u16(half + i, vreinterpretq_u16_f16(vcvt_high_f16_f32(low, vld1q_f32(src + i + 4))));
    }
    for (; i < n; i++)
        half[i] = dp_f16_from_f32(src[i]);
}

/* The upper halves, rounded to nearest even; NaN quiet. */
DP_INLINE uint16x4_t rounded_bf16(float32x4_t x)
{
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint16x4_t rounded = vaddhn_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint16x4_t quiet = vorr_u16(vshrn_n_u32(bits, 16), vdup_n_u16(0x40));
    return vbsl_u16(vmovn_u32(vceqq_f32(x, x)), rounded, quiet);
}

static void from_f32_to_bf16(void *dst, const float *src, size_t n)
{
    uint16_t *half = dst;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        vst1q_u16(half + i, vcombine_u16(rounded_bf16(vld1q_f32(src + i)), rounded_bf16(vld1q_f32(src + i + 4))));
    for (; i < n; i++)
        half[i] = dp_bf16_from_f32(src[i]);
}

void dp_neon_init_convert(dp_kernels *k)
{
    k->to_f32[DP_F16] = to_f32_from_f16;
    k->to_f32[DP_BF16] = to_f32_from_bf16;
    k->from_f32[DP_F16] = from_f32_to_f16;
    k->from_f32[DP_BF16] = from_f32_to_bf16;
    k->to_f32[DP_INT8] = to_f32_from_int8;
    k->from_f32[DP_INT8] = from_f32_to_int8;
}
