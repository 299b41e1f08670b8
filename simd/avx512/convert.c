/* AVX-512 conversion between f32 and the storage types. */
#include "avx512.h"

#include "../int8_rows.h"

DP_INLINE void to_f32(float *dst, const void *src, size_t n, dp_type type)
{
    for (size_t i = 0; i < n; i += DP_BLOCK) {
        const __mmask32 mask = dp_mask32(n - i);
        const dp_block x = dp_natural_block(dp_load_block(src, i, mask, type), type);
        _mm512_mask_storeu_ps(dst + i, (__mmask16)mask, x.first);
        _mm512_mask_storeu_ps(dst + i + 16, (__mmask16)(mask >> 16), x.second);
    }
}

static void to_f32_from_f16(float *dst, const void *src, size_t n)
{
    to_f32(dst, src, n, DP_F16);
}

static void to_f32_from_bf16(float *dst, const void *src, size_t n)
{
    to_f32(dst, src, n, DP_BF16);
}

static void from_f32_to_f16(void *dst, const float *src, size_t n)
{
    uint16_t *half = dst;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(mask, src + i);
        const __m256i rounded = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_mask_storeu_epi16(half + i, mask, rounded);
    }
}

static void from_f32_to_bf16(void *dst, const float *src, size_t n)
{
    uint16_t *half = dst;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(mask, src + i);
        _mm256_mask_storeu_epi16(half + i, mask, dp_round_to_bf16(x));
    }
}

void dp_avx512_init_convert(dp_kernels *k)
{
    k->to_f32[DP_F16] = to_f32_from_f16;
    k->to_f32[DP_BF16] = to_f32_from_bf16;
    k->from_f32[DP_F16] = from_f32_to_f16;
    k->from_f32[DP_BF16] = from_f32_to_bf16;
    k->to_f32[DP_INT8] = to_f32_from_int8;
    k->from_f32[DP_INT8] = from_f32_to_int8;
}
