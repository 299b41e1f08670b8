/* Scalar logits of keys in four bits. */
#include "scalar.h"

static void code_logits(const dp_code_queries *q, const dp_code_tokens *tokens, float *out, size_t out_stride)
{
    const size_t d = q->d;
    for (size_t t = tokens->skip; t < tokens->skip + tokens->n; t++)
        for (size_t h = 0; h < q->heads; h++) {
            const uint8_t *const group = tokens->codes + t / DP_CODE_GROUP * 2 * d;
            const int8_t *const low = q->q + h * 4 * d, *const high = low + 2 * d;
            int32_t sum = 0;
            for (size_t j = 0; j < d / 2; j++) {
                const size_t b = dp_code_place(j, t % DP_CODE_GROUP);
                sum += low[b] * (group[b] & 15) + high[b] * (group[b] >> 4);
            }
            out[h * out_stride + t - tokens->skip] = q->factor[h] * dp_code_step(tokens->step_base, tokens->step[t]) *
                                                     (float)(2 * sum - 15 * q->sum_of_q[h]);
        }
}

void dp_scalar_init_codes(dp_kernels *k)
{
    k->code_logits = code_logits;
}
