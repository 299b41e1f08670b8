/* The NEON kernel table: Advanced SIMD as every AArch64 processor has it. */
#include "neon.h"

void dp_kernels_init_neon(dp_kernels *k)
{
    dp_neon_init_convert(k);
    dp_neon_init_scores(k);
    dp_neon_init_codes(k);
    dp_neon_init_signs(k);
    dp_neon_init_rows(k);
    dp_neon_init_softmax(k);
    dp_neon_init_select(k);
    dp_neon_init_dense(k);
}
