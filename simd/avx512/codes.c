/* AVX-512 logits of keys in four bits, and the largest by their signs, without VNNI. */
#include "codes.h"

/* The sum of two products of small numbers fits 16 bits: 2 * 15 * 127. */
DP_INLINE __m512i dot4(__m512i sum, __m512i small, __m512i q)
{
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(small, q), _mm512_set1_epi16(1)));
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

void dp_avx512_init_codes(dp_kernels *k)
{
    k->code_logits = code_logits;
    k->sign_max = sign_max;
}
