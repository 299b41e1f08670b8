/* NEON with the dot product instructions (ARMv8.4, optional from 8.2): four products and their sum a lane, for keys in four
 * bits. Of the other optional instructions, FEAT_FP16's arithmetic is not used: sums in f16 would lose what the accuracy of
 * the kernels' contracts needs, and conversion from f16 is in the base instructions. */
#include "neon.h"

enum { BLOCK = 16 };

static void code_logits(const int8_t *q, const float *factor, size_t heads, size_t d, const uint8_t *codes,
                        const uint16_t *step, size_t n, float *out, size_t out_stride)
{
    const size_t half = d / 2;
    for (size_t h = 0; h < heads; h++) {
        const int8_t *const low = q + h * d, *const high = low + half;
        int32_t sum_of_q = 0;
        for (size_t j = 0; j < d; j++) sum_of_q += low[j];
        for (size_t i = 0; i < n; i++) {
            int32x4_t sums[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
            for (size_t j = 0; j < half; j += BLOCK) {
                const uint8x16_t packed = dp_load_bytes(codes + i * half + j, half - j);
                const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
                const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
                sums[0] = vdotq_s32(sums[0], first, vreinterpretq_s8_u8(dp_load_bytes(low + j, half - j)));
                sums[1] = vdotq_s32(sums[1], second, vreinterpretq_s8_u8(dp_load_bytes(high + j, half - j)));
            }
            const float32x4_t widened = vreinterpretq_f32_u32(vshll_n_u16(vdup_n_u16(step[i]), 16));
            const int32_t sum = vaddvq_s32(vaddq_s32(sums[0], sums[1]));
            out[h * out_stride + i] = factor[h] * vgetq_lane_f32(widened, 0) * (float)(2 * sum - 15 * sum_of_q);
        }
    }
}

void dp_kernels_init_neon_dotprod(dp_kernels *k)
{
    k->code_logits = code_logits;
}
