/* The AVX2 kernel table: AVX2, FMA and F16C. */
#include "avx2.h"

void dp_kernels_init_avx2(dp_kernels *k)
{
    dp_avx2_init_convert(k);
    dp_avx2_init_scores(k);
    dp_avx2_init_codes(k);
    dp_avx2_init_signs(k);
    dp_avx2_init_rows(k);
    dp_avx2_init_softmax(k);
    dp_avx2_init_select(k);
    dp_avx2_init_dense(k);
}
