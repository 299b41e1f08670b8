/* AVX-512 test of keys by their signs. A vector has four bytes of each of a group's 16 tokens; two groups and up to four heads
 * are summed in registers, in bytes as far as these hold the sums, and what is unpacked serves all heads. Clusters of 24
 * tokens, d 128, four heads: 3.7 ns a token, where products of bytes of zero and one with queries (VNNI) take 7.9. */
#include <string.h>

#include "avx512.h"

#include "../lines.h"

enum {
    TOKENS = 2 * DP_SIGN_GROUP,
    HEADS = 4,
    VECTOR = 64,
    BYTE_DIMS = 128 /* whose sums a byte holds: eight entries a lane */
};

/* Bytes from number j on of a group's 2 d, or of as many of a table. `whole` is a constant: no vector has an end. */
DP_INLINE __m512i load_bytes(const uint8_t *x, size_t j, size_t d, int whole)
{
    if (whole || 2 * d - j >= VECTOR) return _mm512_loadu_si512(x + j);
    return _mm512_maskz_loadu_epi8(((__mmask64)1 << (2 * d - j)) - 1, x + j);
}

/* The lanes' sums of two groups: of the even tokens of the first and of the second, then of the odd ones. */
DP_INLINE __m512i fold(const __m512i sum[2])
{
    __m512i even[2], odd[2];
    DP_UNROLL
    for (size_t g = 0; g < 2; g++) {
        even[g] = _mm512_and_si512(sum[g], _mm512_set1_epi16(255));
        odd[g] = _mm512_srli_epi16(sum[g], 8);
    }
    const __m512i evens =
        _mm512_add_epi16(_mm512_shuffle_i64x2(even[0], even[1], 0x44), _mm512_shuffle_i64x2(even[0], even[1], 0xee));
    const __m512i odds =
        _mm512_add_epi16(_mm512_shuffle_i64x2(odd[0], odd[1], 0x44), _mm512_shuffle_i64x2(odd[0], odd[1], 0xee));
    return _mm512_add_epi16(_mm512_shuffle_i64x2(evens, odds, 0x88), _mm512_shuffle_i64x2(evens, odds, 0xdd));
}

/* out[i]: what dimensions first .. add to the sums of the tokens of groups a and b, for head h + i, in the order of fold(). */
DP_INLINE void sum_block(const dp_sign_queries *q, size_t h, size_t first, size_t d, const uint8_t *a, const uint8_t *b,
                         lines *ahead, __m512i out[HEADS], size_t heads, int whole)
{
    const __m512i low_half = _mm512_set1_epi8(15);
    const size_t last = first + BYTE_DIMS < d ? first + BYTE_DIMS : d;
    __m512i sum[HEADS][2];
    DP_UNROLL
    for (size_t i = 0; i < heads; i++) sum[i][0] = sum[i][1] = _mm512_setzero_si512();
    for (size_t j = 2 * first; j < 2 * last; j += VECTOR) {
        fetch_lines(ahead, 2);
        const __m512i packed[2] = {load_bytes(a, j, d, whole), load_bytes(b, j, d, whole)};
        __m512i low[2], high[2];
        DP_UNROLL
        for (size_t g = 0; g < 2; g++) {
            low[g] = _mm512_and_si512(packed[g], low_half);
            high[g] = _mm512_and_si512(_mm512_srli_epi16(packed[g], 4), low_half);
        }
        DP_UNROLL
        for (size_t i = 0; i < heads; i++) {
            const uint8_t *const table = q->table + (h + i) * 4 * d;
            const __m512i lows = load_bytes(table, j, d, whole), highs = load_bytes(table + 2 * d, j, d, whole);
            DP_UNROLL
            for (size_t g = 0; g < 2; g++)
                sum[i][g] = _mm512_add_epi8(
                    sum[i][g], _mm512_add_epi8(_mm512_shuffle_epi8(lows, low[g]), _mm512_shuffle_epi8(highs, high[g])));
        }
    }
    DP_UNROLL
    for (size_t i = 0; i < heads; i++) out[i] = fold(sum[i]);
}

/* Steps of the tokens whose bytes are the lanes of x. */
DP_INLINE __m512 steps_of(__m256i x, uint32_t base)
{
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 19), _mm512_set1_epi32((int)base)));
}

/* Of the first n lanes those whose logits are not within the limit. */
DP_INLINE __mmask16 beyond(const dp_sign_queries *q, size_t h, size_t n, __m256i sums, __m512 steps)
{
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(sums));
    const __m512 x = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(q->factor[h]), steps),
                                   _mm512_sub_ps(sum, _mm512_set1_ps(q->centre[h])));
    return _mm512_mask_cmp_ps_mask(dp_mask16(n), x, _mm512_set1_ps(q->limit[h]), _CMP_NLE_UQ);
}

/* Marks the tokens of two groups: bits of the even ones and of the odd ones. Those of earlier heads stay. */
DP_INLINE void mark(uint8_t *marks, size_t n, int first_heads, __mmask16 even, __mmask16 odd)
{
    const __m512i pairs = _mm512_or_si512(_mm512_maskz_set1_epi32(even, 1), _mm512_maskz_set1_epi32(odd, 256));
    const __m256i all = _mm512_cvtepi32_epi16(pairs);
    const __m256i before = first_heads ? _mm256_setzero_si256() : _mm256_maskz_loadu_epi8(dp_mask32(n), marks);
    _mm256_mask_storeu_epi8(marks, dp_mask32(n), _mm256_or_si256(before, all));
}

/* The kernel for `heads` heads from number h on; d is a constant where it is a usual one. */
DP_INLINE int any_of(const dp_sign_queries *q, size_t h, const dp_sign_tokens *t, uint8_t *marks, size_t d, size_t heads,
                     int whole)
{
    lines ahead = {(uintptr_t)t->ahead, h == 0 ? t->ahead_lines : 0}; /* the first heads fetch for all */
    int any = 0;
    for (size_t i = 0; i < t->n; i += TOKENS) {
        const size_t left = t->n - i;
        const uint8_t *const a = t->signs + i / DP_SIGN_GROUP * 2 * d;
        const uint8_t *const b = left > DP_SIGN_GROUP ? a + 2 * d : a; /* where there is no other, the same again */
        __m512i sums[HEADS];
        sum_block(q, h, 0, d, a, b, &ahead, sums, heads, whole);
        for (size_t first = BYTE_DIMS; first < d; first += BYTE_DIMS) {
            __m512i more[HEADS];
            sum_block(q, h, first, d, a, b, &ahead, more, heads, whole);
            DP_UNROLL
            for (size_t j = 0; j < heads; j++) sums[j] = _mm512_add_epi16(sums[j], more[j]);
        }
        const __m256i bytes = _mm256_maskz_loadu_epi8(dp_mask32(left), t->step + i);
        const __m512 even = steps_of(_mm256_and_si256(bytes, _mm256_set1_epi16(255)), t->step_base);
        const __m512 odd = steps_of(_mm256_srli_epi16(bytes, 8), t->step_base);
        __mmask16 evens = 0, odds = 0;
        DP_UNROLL
        for (size_t j = 0; j < heads; j++) {
            evens |= beyond(q, h + j, (left + 1) / 2, _mm512_castsi512_si256(sums[j]), even);
            odds |= beyond(q, h + j, left / 2, _mm512_extracti64x4_epi64(sums[j], 1), odd);
        }
        mark(marks + i, left, h == 0, evens, odds);
        any |= evens | odds;
    }
    return any != 0;
}

/* Each number of heads is a function of its own: inlined into one they would compete for registers. */
typedef int heads_fn(const dp_sign_queries *q, size_t h, const dp_sign_tokens *t, uint8_t *marks);

#define DP_SIGNS(name, d, heads, whole)                                                                                \
    static __attribute__((noinline)) int any_of_##heads##_##name(const dp_sign_queries *q, size_t h,                   \
                                                                 const dp_sign_tokens *t, uint8_t *marks)              \
    {                                                                                                                  \
        return any_of(q, h, t, marks, d, heads, whole);                                                                \
    }
#define DP_SIGNS_OF_ALL_HEADS(name, d, whole)                                                                          \
    DP_SIGNS(name, d, 1, whole)                                                                                        \
    DP_SIGNS(name, d, 2, whole)                                                                                        \
    DP_SIGNS(name, d, 3, whole)                                                                                        \
    DP_SIGNS(name, d, 4, whole)                                                                                        \
    static heads_fn *const by_heads_##name[HEADS] = {any_of_1_##name, any_of_2_##name, any_of_3_##name,                \
                                                     any_of_4_##name};

DP_SIGNS_OF_ALL_HEADS(64, 64, 1)
DP_SIGNS_OF_ALL_HEADS(128, 128, 1)
DP_SIGNS_OF_ALL_HEADS(other, q->d, 0)

static int signs_exceed(const dp_sign_queries *q, const dp_sign_tokens *t, uint8_t *marks)
{
    heads_fn *const *const by_heads = q->d == 64 ? by_heads_64 : q->d == 128 ? by_heads_128 : by_heads_other;
    int any = 0;
    if (!q->heads) memset(marks, 0, t->n);
    for (size_t h = 0; h < q->heads; h += HEADS)
        any |= by_heads[(q->heads - h < HEADS ? q->heads - h : HEADS) - 1](q, h, t, marks);
    return any;
}

void dp_avx512_init_signs(dp_kernels *k)
{
    k->signs_exceed = signs_exceed;
}
