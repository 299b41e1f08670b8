/* AVX-512 logits of keys in four bits, with the product of bytes as a parameter. A vector has 16 dimensions of a group's four
 * tokens; 16 tokens and up to four heads are summed in registers, and what is unpacked serves all heads. Clusters of 24
 * tokens, d 128, four heads: 11 ns a token, where a vector for each token, summed across, takes 28 and more. */
#ifndef DP_SIMD_AVX512_CODES_H
#define DP_SIMD_AVX512_CODES_H

#include <string.h>

#include "avx512.h"

#include "../lines.h"

enum { GROUPS = 4, TOKENS = GROUPS * DP_CODE_GROUP, HEADS = 4, VECTOR = 64 };

/* sum[lane] + the products of four unsigned and four signed bytes; what is signed are queries, and what is not below 16. */
typedef dp_words dot4_fn(dp_words sum, __m512i small, __m512i q);

DP_INLINE __mmask64 first_bytes(size_t n)
{
    return n >= VECTOR ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1;
}

DP_INLINE __m512i load_queries(__mmask64 mask, const int8_t *q, int whole)
{
    return whole ? _mm512_loadu_si512(q) : _mm512_maskz_loadu_epi8(mask, q);
}

/* Lane i is the sum of token i; sum[g] has four numbers of each token of group g. */
DP_INLINE __m512i fold(const dp_words sum[GROUPS])
{
    __m512i pair[2];
    DP_UNROLL
    for (size_t p = 0; p < 2; p++)
        pair[p] = _mm512_add_epi32(_mm512_shuffle_i64x2((__m512i)sum[2 * p], (__m512i)sum[2 * p + 1], 0x44),
                                   _mm512_shuffle_i64x2((__m512i)sum[2 * p], (__m512i)sum[2 * p + 1], 0xee));
    return _mm512_add_epi32(_mm512_shuffle_i64x2(pair[0], pair[1], 0x88), _mm512_shuffle_i64x2(pair[0], pair[1], 0xdd));
}

/* out[h] = sum_j q(h, j) code(i, j) of up to four groups' tokens; where there are fewer, the first one's again. `heads` is a
 * constant, and so is `whole`: d is a multiple of 32, and no vector has an end. */
DP_INLINE void code_block(const int8_t *q, size_t d, const uint8_t *codes, size_t groups, lines *ahead,
                          __m512i out[HEADS], size_t heads, int whole, dot4_fn *dot4)
{
    const __m512i low_half = _mm512_set1_epi8(15);
    dp_words sum[HEADS][GROUPS];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) {
        DP_UNROLL
        for (size_t g = 0; g < GROUPS; g++) sum[h][g] = (dp_words)_mm512_setzero_si512();
    }
    const size_t bytes = 2 * d;
    for (size_t j = 0; j < bytes; j += VECTOR) {
        const __mmask64 mask = whole ? ~(__mmask64)0 : first_bytes(bytes - j);
        fetch_lines(ahead, GROUPS);
        __m512i low[GROUPS], high[GROUPS];
        DP_UNROLL
        for (size_t g = 0; g < GROUPS; g++) {
            const __m512i packed = _mm512_maskz_loadu_epi8(mask, codes + (g < groups ? g : 0) * bytes + j);
            low[g] = _mm512_and_si512(packed, low_half);
            high[g] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_half);
        }
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            const int8_t *const x = q + h * 4 * d + j;
            const __m512i first = load_queries(mask, x, whole), second = load_queries(mask, x + bytes, whole);
            DP_UNROLL
            for (size_t g = 0; g < GROUPS; g++) {
                sum[h][g] = dot4(sum[h][g], low[g], first);
                sum[h][g] = dot4(sum[h][g], high[g], second);
            }
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) out[h] = fold(sum[h]);
}

/* Tokens first .. first + 15 of those from the groups' start on: which are asked for, and how many groups they have. */
typedef struct window {
    __mmask16 lanes;
    size_t groups;
} window;

DP_INLINE window window_at(size_t first, const dp_code_tokens *t)
{
    const size_t left = t->skip + t->n - first;
    const __mmask16 before = first < t->skip ? (__mmask16)((1u << t->skip) - 1) : 0;
    return (window){(__mmask16)(dp_mask16(left) & ~before),
                    left >= TOKENS ? GROUPS : (left + DP_CODE_GROUP - 1) / DP_CODE_GROUP};
}

/* The first heads fetch for all. */
DP_INLINE lines ahead_of(const dp_code_tokens *t, size_t first_head)
{
    return (lines){(uintptr_t)t->ahead, first_head == 0 ? t->ahead_lines : 0};
}

DP_INLINE __m512 steps_at(size_t first, window w, const dp_code_tokens *t)
{
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(w.lanes, t->step + first));
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(bytes, 19), _mm512_set1_epi32((int)t->step_base)));
}

/* (factor * step) * (2 sum - centre) */
DP_INLINE __m512 logits_of(__m512i sum, int32_t centre, float factor, __m512 steps)
{
    const __m512i centred = _mm512_sub_epi32(_mm512_slli_epi32(sum, 1), _mm512_set1_epi32(centre));
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(factor), steps), _mm512_cvtepi32_ps(centred));
}

/* The kernels for `heads` heads from number h on. */
DP_INLINE void code_logits_of(const dp_code_queries *q, size_t h, const dp_code_tokens *t, float *out,
                              size_t out_stride, size_t heads, int whole, dot4_fn *dot4)
{
    size_t stored = 0;
    lines ahead = ahead_of(t, h);
    for (size_t first = 0; first < t->skip + t->n; first += TOKENS) {
        const window w = window_at(first, t);
        const __m512 steps = steps_at(first, w, t);
        const size_t count = (size_t)__builtin_popcount(w.lanes);
        __m512i sums[HEADS];
        code_block(q->q + h * 4 * q->d, q->d, t->codes + first / DP_CODE_GROUP * 2 * q->d, w.groups, &ahead, sums,
                   heads, whole, dot4);
        DP_UNROLL
        for (size_t i = 0; i < heads; i++)
            _mm512_mask_storeu_ps(out + (h + i) * out_stride + stored, dp_mask16(count),
                                  _mm512_maskz_compress_ps(
                                      w.lanes, logits_of(sums[i], 15 * q->sum_of_q[h + i], q->factor[h + i], steps)));
        stored += count;
    }
}

/* Each number of heads is a function of its own: inlined into one they would compete for registers. */
typedef void code_logits_heads_fn(const dp_code_queries *q, size_t h, const dp_code_tokens *t, float *out,
                                  size_t out_stride);

#define DP_CODES_OF(heads, whole)                                                                                      \
    static __attribute__((noinline)) void code_logits_##heads##_##whole(                                               \
        const dp_code_queries *q, size_t h, const dp_code_tokens *t, float *out, size_t out_stride)                    \
    {                                                                                                                  \
        code_logits_of(q, h, t, out, out_stride, heads, whole, dot4);                                                  \
    }

#define DP_ALL_HEADS(name, whole)                                                                                      \
    {                                                                                                                  \
        name##_1_##whole, name##_2_##whole, name##_3_##whole, name##_4_##whole                                         \
    }

/* code_logits of the table, by dot4(). */
#define DP_CODES                                                                                                       \
    DP_CODES_OF(1, 0)                                                                                                  \
    DP_CODES_OF(2, 0)                                                                                                  \
    DP_CODES_OF(3, 0)                                                                                                  \
    DP_CODES_OF(4, 0) DP_CODES_OF(1, 1) DP_CODES_OF(2, 1) DP_CODES_OF(3, 1) DP_CODES_OF(4, 1) static void code_logits( \
        const dp_code_queries *q, const dp_code_tokens *t, float *out, size_t out_stride)                              \
    {                                                                                                                  \
        static code_logits_heads_fn *const by_heads[2][HEADS] = {DP_ALL_HEADS(code_logits, 0),                         \
                                                                 DP_ALL_HEADS(code_logits, 1)};                        \
        for (size_t h = 0; t->n && h < q->heads; h += HEADS)                                                           \
            by_heads[q->d % 32 == 0][(q->heads - h < HEADS ? q->heads - h : HEADS) - 1](q, h, t, out, out_stride);     \
    }

#endif
