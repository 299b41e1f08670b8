/* AVX512-VNNI: what multiplies bytes, in one instruction. */
#include "codes.h"

DP_INLINE __m512i dot4(__m512i sum, __m512i small, __m512i q)
{
    return _mm512_dpbusd_epi32(sum, small, q);
}

DP_CODES

void dp_kernels_init_avx512_vnni(dp_kernels *k)
{
    k->code_logits = code_logits;
}
