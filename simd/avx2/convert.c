/* AVX2 conversion between f32 and the storage types. */
#include "avx2.h"

#include "../int8_rows.h"

#include "../half.h"

DP_INLINE void to_f32(float *dst, const void *src, size_t n, dp_type type)
{
    size_t i = 0;
    for (; i + DP_BLOCK <= n; i += DP_BLOCK) {
        const dp_block x = dp_natural_block(dp_load_block(src, i, 0, type), type);
        _mm256_storeu_ps(dst + i, x.first);
        _mm256_storeu_ps(dst + i + 8, x.second);
    }
    for (; i < n; i++) {
        const uint16_t x = ((const uint16_t *)src)[i];
        dst[i] = type == DP_F16 ? dp_f32_from_f16(x) : dp_f32_from_bf16(x);
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
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(half + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    for (; i < n; i++)
        half[i] = dp_f16_from_f32(src[i]);
}

/* The upper halves, rounded, in the lower 16 bits of each lane. */
DP_INLINE __m256i rounded_bf16(__m256 x)
{
    const __m256i bits = _mm256_castps_si256(x), upper = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
}

static void from_f32_to_bf16(void *dst, const float *src, size_t n)
{
    uint16_t *half = dst;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i packed = _mm256_packus_epi32(rounded_bf16(_mm256_loadu_ps(src + i)),
                                                   rounded_bf16(_mm256_loadu_ps(src + i + 8)));
        _mm256_storeu_si256((__m256i *)(void *)(half + i), _mm256_permute4x64_epi64(packed, 0xd8));
    }
    for (; i < n; i++)
        half[i] = dp_bf16_from_f32(src[i]);
}

void dp_avx2_init_convert(dp_kernels *k)
{
    k->to_f32[DP_F16] = to_f32_from_f16;
    k->to_f32[DP_BF16] = to_f32_from_bf16;
    k->from_f32[DP_F16] = from_f32_to_f16;
    k->from_f32[DP_BF16] = from_f32_to_bf16;
    k->to_f32[DP_INT8] = to_f32_from_int8;
    k->from_f32[DP_INT8] = from_f32_to_int8;
}
