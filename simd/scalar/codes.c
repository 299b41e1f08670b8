/* Scalar logits of keys in four bits, and of their signs. */
#include "../half.h"
#include "scalar.h"

static void code_logits(const int8_t *q, const float *factor, size_t heads, size_t d, const uint8_t *codes,
                        const uint16_t *step, size_t n, float *out, size_t out_stride)
{
    for (size_t i = 0; i < n; i++, codes += d / 2)
        for (size_t h = 0; h < heads; h++) {
            const int8_t *low = q + h * d, *high = low + d / 2;
            int32_t sum = 0;
            for (size_t j = 0; j < d / 2; j++)
                sum += low[j] * (2 * (codes[j] & 15) - 15) + high[j] * (2 * (codes[j] >> 4) - 15);
            out[h * out_stride + i] = factor[h] * dp_f32_from_bf16(step[i]) * (float)sum;
        }
}

static void sign_logits(const int8_t *q, const float *factor, size_t heads, size_t d, const uint8_t *signs,
                        const uint16_t *step, size_t n, float *out, size_t out_stride)
{
    for (size_t i = 0; i < n; i++, signs += d / 8)
        for (size_t h = 0; h < heads; h++) {
            int32_t sum = 0;
            for (size_t j = 0; j < d; j++) sum += signs[j / 8] >> j % 8 & 1 ? q[h * d + j] : -q[h * d + j];
            out[h * out_stride + i] = factor[h] * dp_f32_from_bf16(step[i]) * (float)sum;
        }
}

void dp_scalar_init_codes(dp_kernels *k)
{
    k->code_logits = code_logits;
    k->sign_logits = sign_logits;
}
