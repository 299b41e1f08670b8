/* AVX-512 with the BF16 instructions: conversion to bf16 only.
 *
 * VDPBF16PS, the dot product of bf16 pairs, is not used: a query in f32 would have to be cut into three bf16 parts (two
 * leave an error of 2^-17), three instructions where widening the row and two FMAs do the same work exactly, it treats
 * denormals as zero, and both kernels that could use it wait for memory. */
#include "avx512.h"

static void from_f32_to_bf16(void *dst, const float *src, size_t n)
{
    enum { DENORMAL = 0x20 }; /* class of VFPCLASSPS */
    uint16_t *half = dst;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(mask, src + i);
        __m256i rounded = (__m256i)_mm512_cvtneps_pbh(x);
        if (_mm512_fpclass_ps_mask(x, DENORMAL)) /* which the instruction takes for zeros */
            rounded = dp_round_to_bf16(x);
        _mm256_mask_storeu_epi16(half + i, mask, rounded);
    }
}

void dp_kernels_init_avx512_bf16(dp_kernels *k)
{
    k->from_f32[DP_BF16] = from_f32_to_bf16;
}
