/* The AVX-512 kernel table: F, BW, DQ and VL. */
#include "avx512.h"

void dp_kernels_init_avx512(dp_kernels *k)
{
    dp_avx512_init_convert(k);
    dp_avx512_init_scores(k);
    dp_avx512_init_codes(k);
    dp_avx512_init_signs(k);
    dp_avx512_init_rows(k);
    dp_avx512_init_softmax(k);
    dp_avx512_init_select(k);
    dp_avx512_init_dense(k);
}
