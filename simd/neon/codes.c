/* NEON logits of keys in four bits, with the base instructions: products in 16 bits are added
 * in pairs, tokens 0 and 1 in one vector and 2 and 3 in another. */
#include "codes.h"

DP_INLINE dot4_sum add(dot4_sum sum, int8x16_t small, int8x16_t q)
{
    sum.part[0] = vpadalq_s16(sum.part[0], vmull_s8(vget_low_s8(small), vget_low_s8(q)));
    sum.part[1] = vpadalq_s16(sum.part[1], vmull_s8(vget_high_s8(small), vget_high_s8(q)));
    return sum;
}

DP_INLINE int32x4_t total(dot4_sum sum)
{
    return vpaddq_s32(sum.part[0], sum.part[1]);
}

static void code_logits(const dp_code_queries *q, const dp_code_tokens *t, float *out, size_t out_stride)
{
    code_logits_by(q, t, out, out_stride, (dot4){add, total});
}

void dp_neon_init_codes(dp_kernels *k)
{
    k->code_logits = code_logits;
}
