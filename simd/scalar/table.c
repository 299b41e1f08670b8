/* The scalar kernel table: the portable form of every kernel, and the base that other ISAs overwrite. */
#include "scalar.h"

void dp_kernels_init_scalar(dp_kernels *k)
{
    dp_scalar_init_convert(k);
    dp_scalar_init_scores(k);
    dp_scalar_init_codes(k);
    dp_scalar_init_signs(k);
    dp_scalar_init_rows(k);
    dp_scalar_init_softmax(k);
    dp_scalar_init_select(k);
    dp_scalar_init_dense(k);
}
