/* NEON with the dot product instructions (ARMv8.4, optional from 8.2): four products and their sum a lane, for keys in few
 * bits. Of the other optional instructions, FEAT_FP16's arithmetic is not used: sums in f16 would lose what the accuracy of
 * the kernels' contracts needs, and conversion from f16 is in the base instructions. */
#include "codes.h"

DP_INLINE dot4_sum add(dot4_sum sum, int8x16_t small, int8x16_t q)
{
    sum.part[0] = vdotq_s32(sum.part[0], small, q);
    return sum;
}

DP_INLINE int32x4_t total(dot4_sum sum)
{
    return sum.part[0];
}

static void code_logits(const dp_code_queries *q, const dp_code_tokens *t, float *out, size_t out_stride)
{
    code_logits_by(q, t, out, out_stride, (dot4){add, total});
}

void dp_kernels_init_neon_dotprod(dp_kernels *k)
{
    k->code_logits = code_logits;
}
