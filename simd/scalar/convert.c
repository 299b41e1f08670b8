/* Scalar conversion between f32 and the storage types. */
#include "scalar.h"

#include "../int8_rows.h"

static void to_f32_from_f16(float *dst, const void *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = dp_element(src, i, DP_F16);
}

static void to_f32_from_bf16(float *dst, const void *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = dp_element(src, i, DP_BF16);
}

static void to_f32_from_f32(float *dst, const void *src, size_t n)
{
    if (n)
        memcpy(dst, src, n * sizeof *dst);
}

static void from_f32_to_f16(void *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint16_t *)dst)[i] = dp_f16_from_f32(src[i]);
}

static void from_f32_to_bf16(void *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint16_t *)dst)[i] = dp_bf16_from_f32(src[i]);
}

static void from_f32_to_f32(void *dst, const float *src, size_t n)
{
    if (n)
        memcpy(dst, src, n * sizeof *src);
}

void dp_scalar_init_convert(dp_kernels *k)
{
    k->to_f32[DP_F32] = to_f32_from_f32;
    k->to_f32[DP_F16] = to_f32_from_f16;
    k->to_f32[DP_BF16] = to_f32_from_bf16;
    k->from_f32[DP_F32] = from_f32_to_f32;
    k->from_f32[DP_F16] = from_f32_to_f16;
    k->from_f32[DP_BF16] = from_f32_to_bf16;
    k->to_f32[DP_INT8] = to_f32_from_int8;
    k->from_f32[DP_INT8] = from_f32_to_int8;
}
