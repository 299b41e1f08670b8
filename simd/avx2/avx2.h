/* What the AVX2 kernels share: partial loads, loads of rows of any type in blocks of 16, the exponential, reductions.
 *
 * A block of 16 elements becomes two f32 vectors. For f32 and f16 these are the first and the second half; for bf16 the
 * even and the odd elements: a shift and a mask instead of shuffles. The other operand (queries) is brought into the
 * same order once per call, results back once at the end. Row dimensions are multiples of 8: the last block may be half
 * a block, and then has zeros where the other half would be. */
#ifndef DP_SIMD_AVX2_H
#define DP_SIMD_AVX2_H

#include <immintrin.h>
#include <math.h>

#include "../exp_constants.h"
#include "../inline.h"
#include "../kernels.h"

enum { DP_BLOCK = 16 };

typedef struct dp_block {
    __m256 first, second;
} dp_block;

/* All ones in the first n lanes. */
DP_INLINE __m256i dp_mask8(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? (int)n : 8), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* The first n of 8 numbers, 0 in the other lanes; n >= 8 is all of them. */
DP_INLINE __m256 dp_load_first(const float *x, size_t n)
{
    return n >= 8 ? _mm256_loadu_ps(x) : _mm256_maskload_ps(x, dp_mask8(n));
}

DP_INLINE void dp_store_first(float *x, size_t n, __m256 value)
{
    if (n >= 8)
        _mm256_storeu_ps(x, value);
    else
        _mm256_maskstore_ps(x, dp_mask8(n), value);
}

/* The same of bf16 numbers. */
DP_INLINE __m256 dp_load_first_bf16(const uint16_t *x, size_t n)
{
    __m128i bits;
    if (n >= 8) {
        bits = _mm_loadu_si128((const __m128i *)(const void *)x);
    } else {
        uint16_t part[8] = {0};
        for (size_t i = 0; i < n; i++)
            part[i] = x[i];
        bits = _mm_loadu_si128((const __m128i *)(const void *)part);
    }
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/* Elements j .. j + 15 of a row (int8: without its step), or j .. j + 7 where `half`. */
DP_INLINE dp_block dp_load_block(const void *row, size_t j, int half, dp_type type)
{
    if (type == DP_F32) {
        const float *x = (const float *)row + j;
        return (dp_block){_mm256_loadu_ps(x), half ? _mm256_setzero_ps() : _mm256_loadu_ps(x + 8)};
    }
    if (type == DP_INT8) {
        const __m128i *const x = (const __m128i *)(const void *)((const int8_t *)row + j);
        const __m128i bytes = half ? _mm_loadl_epi64(x) : _mm_loadu_si128(x);
        return (dp_block){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
    }
    const uint16_t *x = (const uint16_t *)row + j;
    const __m128i low = _mm_loadu_si128((const __m128i *)(const void *)x);
    if (type == DP_F16) {
        const __m128i high = half ? _mm_setzero_si128() : _mm_loadu_si128((const __m128i *)(const void *)(x + 8));
        return (dp_block){_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)};
    }
    const __m256i pairs = half ? _mm256_zextsi128_si256(low) : _mm256_loadu_si256((const __m256i *)(const void *)x);
    return (dp_block){_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
                      _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000u)))};
}

/* f32 elements of x in the order that dp_load_block gives for rows of `type`. */
DP_INLINE dp_block dp_arrange_block(const float *x, size_t j, int half, dp_type type)
{
    const dp_block natural = dp_load_block(x, j, half, DP_F32);
    if (type != DP_BF16)
        return natural;
    const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(natural.first, natural.second, 0x88));
    const __m256d odd = _mm256_castps_pd(_mm256_shuffle_ps(natural.first, natural.second, 0xdd));
    return (dp_block){_mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8)),
                      _mm256_castpd_ps(_mm256_permute4x64_pd(odd, 0xd8))};
}

/* The way back from dp_load_block's order. */
DP_INLINE dp_block dp_natural_block(dp_block block, dp_type type)
{
    if (type != DP_BF16)
        return block;
    const __m256 low = _mm256_unpacklo_ps(block.first, block.second);
    const __m256 high = _mm256_unpackhi_ps(block.first, block.second);
    return (dp_block){_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}

/* Lane i of the result is the sum of the lanes of v[i], i < 8. */
DP_INLINE __m256 dp_sum_lanes_8(const __m256 v[8])
{
    const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

DP_INLINE float dp_sum_lanes(__m256 x)
{
    const __m128 quad = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

DP_INLINE float dp_max_lane(__m256 x)
{
    const __m128 quad = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 pair = _mm_max_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

typedef struct dp_exp_parts {
    __m256i n;
    __m256 tail; /* exp(x) = 2^n (1 + tail) */
} dp_exp_parts;

DP_INLINE dp_exp_parts dp_exp_split(__m256 x)
{
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(DP_LOG2_E)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 high = _mm256_fnmadd_ps(n, _mm256_set1_ps(DP_LN2_HIGH), x);
    const __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(DP_LN2_LOW), high);
    __m256 p = _mm256_set1_ps(DP_EXP_C5);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DP_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DP_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DP_EXP_C2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DP_EXP_C1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(DP_EXP_C0));
    return (dp_exp_parts){_mm256_cvtps_epi32(n), _mm256_mul_ps(p, r)};
}

/* 2^n for -126 <= n <= 127, anything outside. */
DP_INLINE __m256 dp_power_of_2(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* exp(x); 0 below DP_EXP_LOWEST. min(a, b) is b where either is NaN: NaN stays. The power of 2 is applied in halves, for
 * n can be 128. */
DP_INLINE __m256 dp_exp(__m256 x)
{
    const __m256 nonzero = _mm256_cmp_ps(x, _mm256_set1_ps(DP_EXP_LOWEST), _CMP_NLT_UQ);
    const dp_exp_parts parts = dp_exp_split(_mm256_min_ps(_mm256_set1_ps(DP_EXP_LARGEST), x));
    const __m256i half = _mm256_srai_epi32(parts.n, 1);
    const __m256 scaled = _mm256_mul_ps(_mm256_add_ps(parts.tail, _mm256_set1_ps(1)), dp_power_of_2(half));
    return _mm256_and_ps(nonzero, _mm256_mul_ps(scaled, dp_power_of_2(_mm256_sub_epi32(parts.n, half))));
}

/* expm1(x) for x >= 0, to a few ulp; large enough above 80; NaN stays. */
DP_INLINE __m256 dp_bounded_expm1(__m256 x)
{
    const __m256 one = _mm256_set1_ps(1);
    const dp_exp_parts parts = dp_exp_split(_mm256_min_ps(_mm256_set1_ps(80), x));
    const __m256 power = dp_power_of_2(parts.n);
    return _mm256_fmadd_ps(power, parts.tail, _mm256_sub_ps(power, one));
}

void dp_avx2_init_convert(dp_kernels *k);
void dp_avx2_init_scores(dp_kernels *k);
void dp_avx2_init_codes(dp_kernels *k);
void dp_avx2_init_signs(dp_kernels *k);
void dp_avx2_init_rows(dp_kernels *k);
void dp_avx2_init_softmax(dp_kernels *k);
void dp_avx2_init_select(dp_kernels *k);
void dp_avx2_init_dense(dp_kernels *k);

#endif
