/* What the scalar kernels share: the load of an element of any type, and the entries that table.c gathers. */
#ifndef DP_SIMD_SCALAR_H
#define DP_SIMD_SCALAR_H

#include "../half.h"
#include "../inline.h"
#include "../kernels.h"

/* Of int8 without the row's step. Called with a constant type, so that each type's variant of a kernel is its own straight
 * loop. */
DP_INLINE float dp_element(const void *row, size_t i, dp_type type)
{
    return type == DP_F32 ? ((const float *)row)[i]
         : type == DP_INT8 ? (float)((const int8_t *)row)[i]
         : type == DP_F16 ? dp_f32_from_f16(((const uint16_t *)row)[i])
                          : dp_f32_from_bf16(((const uint16_t *)row)[i]);
}

/* Sum of products in eight interleaved partial sums: a fixed order that compilers can map to vectors. */
DP_INLINE float dp_dot_interleaved(const float *a, const float *b, size_t n)
{
    float part[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t lane = 0; lane < 8; lane++)
            part[lane] += a[i + lane] * b[i + lane];
    for (; i < n; i++)
        part[i % 8] += a[i] * b[i];
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

void dp_scalar_init_convert(dp_kernels *k);
void dp_scalar_init_scores(dp_kernels *k);
void dp_scalar_init_codes(dp_kernels *k);
void dp_scalar_init_signs(dp_kernels *k);
void dp_scalar_init_rows(dp_kernels *k);
void dp_scalar_init_softmax(dp_kernels *k);
void dp_scalar_init_select(dp_kernels *k);
void dp_scalar_init_dense(dp_kernels *k);

#endif
