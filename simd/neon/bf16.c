/* NEON with the BF16 instructions (ARMv8.6, optional before): conversion to bf16 only.
 *
 * BFMLALB and BFDOT, the products of bf16 numbers, are not used: a query in f32 would have to be cut into three bf16 parts
 * (two leave an error of 2^-17), three instructions where a ZIP to widen the row and an FMA do the same work exactly, and
 * BFDOT treats denormals as zero. */
#include "neon.h"

#include "../half.h"

static void from_f32_to_bf16(void *dst, const float *src, size_t n)
{
    uint16_t *half = dst;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const bfloat16x8_t low = vcvtq_low_bf16_f32(vld1q_f32(src + i));
        vst1q_u16(half + i, vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(low, vld1q_f32(src + i + 4))));
    }
    for (; i < n; i++)
        half[i] = dp_bf16_from_f32(src[i]);
}

void dp_kernels_init_neon_bf16(dp_kernels *k)
{
    k->from_f32[DP_BF16] = from_f32_to_bf16;
}
