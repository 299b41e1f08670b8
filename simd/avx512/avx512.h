/* What the AVX-512 kernels share: masks, loads of rows of any type in blocks of 32, the exponential, reductions.
 *
 * A block of 32 elements becomes two f32 vectors. For f32 and f16 these are the first and the second half; for bf16 the
 * even and the odd elements, which takes a shift and a mask where widening in order would take two shuffles and two
 * shifts. The other operand (queries) is brought into the same order once per call, results back once at the end. */
#ifndef DP_SIMD_AVX512_H
#define DP_SIMD_AVX512_H

#include <immintrin.h>
#include <math.h>

#include "../exp_constants.h"
#include "../inline.h"
#include "../kernels.h"

enum { DP_BLOCK = 32 };

typedef struct dp_block {
    __m512 first, second;
} dp_block;

/* Sums of products of bytes that stay in registers over a loop. As __m512i, eight numbers to gcc, they are copied from one
 * register to another before and after each product: 64 us for what takes 41 in nearest_in_bytes. */
typedef int32_t dp_words __attribute__((vector_size(64)));

DP_INLINE __mmask16 dp_mask16(size_t n)
{
    return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1);
}

DP_INLINE __mmask32 dp_mask32(size_t n)
{
    return n >= 32 ? 0xffffffffu : (1u << n) - 1;
}

/* Elements j .. j + 31 of a row (int8: without its step); those outside the mask are 0 and are not read. */
DP_INLINE dp_block dp_load_block(const void *row, size_t j, __mmask32 mask, dp_type type)
{
    if (type == DP_F32) {
        const float *x = (const float *)row + j;
        return (dp_block){_mm512_maskz_loadu_ps((__mmask16)mask, x),
                          _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), x + 16)};
    }
    if (type == DP_INT8) {
        const __m256i x = _mm256_maskz_loadu_epi8(mask, (const int8_t *)row + j);
        return (dp_block){_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(x))),
                          _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1)))};
    }
    const uint16_t *x = (const uint16_t *)row + j;
    if (type == DP_F16)
        return (dp_block){_mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)mask, x)),
                          _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)(mask >> 16), x + 16))};
    const __m512i pairs = _mm512_maskz_loadu_epi16(mask, x);
    return (dp_block){_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
                      _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u)))};
}

/* f32 elements j .. j + 31 of x in the order that dp_load_block gives for rows of `type`. */
DP_INLINE dp_block dp_arrange_block(const float *x, size_t j, __mmask32 mask, dp_type type)
{
    const dp_block natural = dp_load_block(x, j, mask, DP_F32);
    if (type != DP_BF16)
        return natural;
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return (dp_block){_mm512_permutex2var_ps(natural.first, even, natural.second),
                      _mm512_permutex2var_ps(natural.first, odd, natural.second)};
}

/* The way back from dp_load_block's order. */
DP_INLINE dp_block dp_natural_block(dp_block block, dp_type type)
{
    if (type != DP_BF16)
        return block;
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return (dp_block){_mm512_permutex2var_ps(block.first, low, block.second),
                      _mm512_permutex2var_ps(block.first, high, block.second)};
}

/* To bf16 by integer arithmetic: round to nearest even, NaN quiet, denormals kept. */
DP_INLINE __m256i dp_round_to_bf16(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x), upper = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)));
}

/* 16 bf16 numbers; those outside the mask are 0 and are not read. */
DP_INLINE __m512 dp_load_bf16(__mmask16 mask, const uint16_t *x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16));
}

/* Lane i of the result is the sum of the lanes of v[i], i < 16. */
DP_INLINE __m512 dp_sum_lanes_16(const __m512 v[16])
{
    /* Two vectors become one: a blend takes the lanes of each that stay, a shuffle brings those that join them. */
    const __m512i by_8 = _mm512_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23);
    const __m512i by_4 = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
    const __m512i by_1 = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    __m512 eight[8], four[4], two[2];
    DP_UNROLL
    for (size_t i = 0; i < 8; i++)
        eight[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, v[i], v[i + 8]),
                                 _mm512_permutex2var_ps(v[i], by_8, v[i + 8]));
    DP_UNROLL
    for (size_t i = 0; i < 4; i++)
        four[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xf0f0, eight[i], eight[i + 4]),
                                _mm512_permutex2var_ps(eight[i], by_4, eight[i + 4]));
    DP_UNROLL
    for (size_t i = 0; i < 2; i++)
        two[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, four[i], four[i + 2]),
                               _mm512_shuffle_ps(four[i], four[i + 2], 0x4e));
    return _mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, two[0], two[1]), _mm512_permutex2var_ps(two[0], by_1, two[1]));
}

typedef struct dp_exp_parts {
    __m512 n, tail; /* exp(x) = 2^n (1 + tail) */
} dp_exp_parts;

DP_INLINE dp_exp_parts dp_exp_split(__m512 x)
{
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(DP_LOG2_E)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 high = _mm512_fnmadd_ps(n, _mm512_set1_ps(DP_LN2_HIGH), x);
    const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(DP_LN2_LOW), high);
    __m512 p = _mm512_set1_ps(DP_EXP_C5);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DP_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DP_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DP_EXP_C2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DP_EXP_C1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(DP_EXP_C0));
    return (dp_exp_parts){n, _mm512_mul_ps(p, r)};
}

/* exp(x); 0 below DP_EXP_LOWEST. min(a, b) is b where either is NaN: NaN stays. */
DP_INLINE __m512 dp_exp(__m512 x)
{
    const __mmask16 nonzero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(DP_EXP_LOWEST), _CMP_NLT_UQ);
    const dp_exp_parts parts = dp_exp_split(_mm512_min_ps(_mm512_set1_ps(DP_EXP_LARGEST), x));
    return _mm512_maskz_scalef_ps(nonzero, _mm512_add_ps(parts.tail, _mm512_set1_ps(1)), parts.n);
}

/* expm1(x) for x >= 0, to a few ulp; large enough above 80; NaN stays. */
DP_INLINE __m512 dp_bounded_expm1(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1);
    const dp_exp_parts parts = dp_exp_split(_mm512_min_ps(_mm512_set1_ps(80), x));
    const __m512 power = _mm512_scalef_ps(one, parts.n);
    return _mm512_fmadd_ps(power, parts.tail, _mm512_sub_ps(power, one));
}

void dp_avx512_init_convert(dp_kernels *k);
void dp_avx512_init_scores(dp_kernels *k);
void dp_avx512_init_codes(dp_kernels *k);
void dp_avx512_init_signs(dp_kernels *k);
void dp_avx512_init_rows(dp_kernels *k);
void dp_avx512_init_softmax(dp_kernels *k);
void dp_avx512_init_select(dp_kernels *k);
void dp_avx512_init_dense(dp_kernels *k);

#endif
