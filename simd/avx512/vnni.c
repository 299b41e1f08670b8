/* AVX512-VNNI: what multiplies bytes, in one instruction. */
#include "codes.h"

DP_INLINE __m512i dot4(__m512i sum, __m512i small, __m512i q)
{
    return _mm512_dpbusd_epi32(sum, small, q);
}

static void code_logits(const dp_code_queries *q, const uint8_t *codes, const uint16_t *step, size_t skip, size_t n,
                        float *out, size_t out_stride)
{
    code_logits_by(q, codes, step, skip, n, out, out_stride, dot4);
}

static void sign_max(const dp_code_queries *q, const uint8_t *signs, const uint16_t *step, size_t skip, size_t n,
                     float *out)
{
    sign_max_by(q, signs, step, skip, n, out, dot4);
}

void dp_kernels_init_avx512_vnni(dp_kernels *k)
{
    k->code_logits = code_logits;
    k->sign_max = sign_max;
}
