/* NEON logits of keys in four bits, and of their signs. Of the former 16 bytes, both halves of a token's codes, are
 * multiplied and added in 16-bit lanes (four products of at most 15 * 127 each), then in 32-bit lanes. */
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
            int32x4_t sum = vdupq_n_s32(0);
            for (size_t j = 0; j < half; j += BLOCK) {
                const uint8x16_t packed = dp_load_bytes(codes + i * half + j, half - j);
                const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
                const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
                const int8x16_t x = vreinterpretq_s8_u8(dp_load_bytes(low + j, half - j));
                const int8x16_t y = vreinterpretq_s8_u8(dp_load_bytes(high + j, half - j));
                int16x8_t products = vmull_s8(vget_low_s8(first), vget_low_s8(x));
                products = vmlal_s8(products, vget_high_s8(first), vget_high_s8(x));
                products = vmlal_s8(products, vget_low_s8(second), vget_low_s8(y));
                products = vmlal_s8(products, vget_high_s8(second), vget_high_s8(y));
                sum = vpadalq_s16(sum, products);
            }
            const float32x4_t widened = vreinterpretq_f32_u32(vshll_n_u16(vdup_n_u16(step[i]), 16));
            out[h * out_stride + i] =
                factor[h] * vgetq_lane_f32(widened, 0) * (float)(2 * vaddvq_s32(sum) - 15 * sum_of_q);
        }
    }
}

/* Twice the sum of the elements whose bit is set, less the sum of all, is the sum with signs. */
static void sign_logits(const int8_t *q, const float *factor, size_t heads, size_t d, const uint8_t *signs,
                        const uint16_t *step, size_t n, float *out, size_t out_stride)
{
    static const uint8_t bits_of_byte[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x8_t bit = vld1_u8(bits_of_byte);
    for (size_t h = 0; h < heads; h++) {
        const int8_t *const x = q + h * d;
        int32_t sum_of_q = 0;
        for (size_t j = 0; j < d; j++) sum_of_q += x[j];
        for (size_t i = 0; i < n; i++) {
            const uint8_t *const bytes = signs + i * (d / 8);
            int16x4_t sum = vdup_n_s16(0); /* d / 4 numbers a lane: 16 bits hold them */
            for (size_t j = 0; j < d / 8; j++) {
                const uint8x8_t set = vtst_u8(vdup_n_u8(bytes[j]), bit);
                sum = vpadal_s8(sum, vand_s8(vreinterpret_s8_u8(set), vld1_s8(x + 8 * j)));
            }
            const float32x4_t widened = vreinterpretq_f32_u32(vshll_n_u16(vdup_n_u16(step[i]), 16));
            out[h * out_stride + i] =
                factor[h] * vgetq_lane_f32(widened, 0) * (float)(2 * (int32_t)vaddlv_s16(sum) - sum_of_q);
        }
    }
}

void dp_neon_init_codes(dp_kernels *k)
{
    k->code_logits = code_logits;
    k->sign_logits = sign_logits;
}
