/* AVX-512 logits of keys in four bits, without VNNI. */
#include "codes.h"

/* The sum of two products of small numbers fits 16 bits: 2 * 15 * 127. */
DP_INLINE dp_words dot4(dp_words sum, __m512i small, __m512i q)
{
    return sum + (dp_words)_mm512_madd_epi16(_mm512_maddubs_epi16(small, q), _mm512_set1_epi16(1));
}

DP_CODES

void dp_avx512_init_codes(dp_kernels *k)
{
    k->code_logits = code_logits;
}
