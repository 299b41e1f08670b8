/* AVX2 test of keys by their signs. A vector has two bytes of each of a group's 16 tokens; up to four heads are summed in
 * registers, in bytes as far as these hold the sums, and what is unpacked serves all heads. */
#include <string.h>

#include "avx2.h"

#include "../lines.h"

enum { HEADS = 4, VECTOR = 32, BYTE_DIMS = 64 /* whose sums a byte holds: eight entries a lane */ };

/* Bytes from number j on of a group's 2 d, or of as many of a table; half a vector, and zeros, where no more is left. */
DP_INLINE __m256i load_bytes(const uint8_t *x, size_t j, size_t d)
{
    if (2 * d - j >= VECTOR) return _mm256_loadu_si256((const __m256i *)(const void *)(x + j));
    return _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(x + j)));
}

/* What dimensions first .. add to the sums of a group's tokens for head h + i is added to out[i]. */
DP_INLINE void sum_block(const dp_sign_queries *q, size_t h, size_t first, const uint8_t *group, __m256i out[HEADS],
                         size_t heads)
{
    const __m256i low_half = _mm256_set1_epi8(15);
    const size_t d = q->d, last = first + BYTE_DIMS < d ? first + BYTE_DIMS : d;
    __m256i sum[HEADS];
    DP_UNROLL
    for (size_t i = 0; i < heads; i++) sum[i] = _mm256_setzero_si256();
    for (size_t j = 2 * first; j < 2 * last; j += VECTOR) {
        const __m256i packed = load_bytes(group, j, d);
        const __m256i low = _mm256_and_si256(packed, low_half);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_half);
        DP_UNROLL
        for (size_t i = 0; i < heads; i++) {
            const uint8_t *const table = q->table + (h + i) * 4 * d;
            const __m256i lows = _mm256_shuffle_epi8(load_bytes(table, j, d), low);
            const __m256i highs = _mm256_shuffle_epi8(load_bytes(table + 2 * d, j, d), high);
            sum[i] = _mm256_add_epi8(sum[i], _mm256_add_epi8(lows, highs));
        }
    }
    DP_UNROLL
    for (size_t i = 0; i < heads; i++) {
        const __m256i even = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(sum[i]));
        const __m256i odd = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(sum[i], 1));
        out[i] = _mm256_add_epi16(out[i], _mm256_add_epi16(even, odd));
    }
}

/* out[i]: the sums of a group's tokens for head h + i, in 16 bits; `heads` is a constant. */
DP_INLINE void sum_group(const dp_sign_queries *q, size_t h, const uint8_t *group, __m256i out[HEADS], size_t heads)
{
    DP_UNROLL
    for (size_t i = 0; i < heads; i++) out[i] = _mm256_setzero_si256();
    for (size_t first = 0; first < q->d; first += BYTE_DIMS) sum_block(q, h, first, group, out, heads);
}

static void sum_group_of(const dp_sign_queries *q, size_t h, const uint8_t *group, __m256i out[HEADS], size_t heads)
{
    switch (heads) {
    case 1: sum_group(q, h, group, out, 1); break;
    case 2: sum_group(q, h, group, out, 2); break;
    case 3: sum_group(q, h, group, out, 3); break;
    default: sum_group(q, h, group, out, 4);
    }
}

/* All ones for those lanes whose logits are not within the limit. */
DP_INLINE __m256 beyond(const dp_sign_queries *q, size_t h, __m128i sums, __m256 steps)
{
    const __m256 sum = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(sums));
    const __m256 x = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(q->factor[h]), steps),
                                   _mm256_sub_ps(sum, _mm256_set1_ps(q->centre[h])));
    return _mm256_cmp_ps(x, _mm256_set1_ps(q->limit[h]), _CMP_NLE_UQ);
}

/* Steps of eight tokens. */
DP_INLINE __m256 steps_of(const uint8_t *bytes, uint32_t base)
{
    const __m256i words = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)bytes));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(words, 19), _mm256_set1_epi32((int)base)));
}

/* Marks a group's n tokens where the lanes are all ones; returns whether any is. */
DP_INLINE int mark(uint8_t *marks, size_t n, __m256 first, __m256 second)
{
    const unsigned bits = (unsigned)_mm256_movemask_ps(first) | (unsigned)_mm256_movemask_ps(second) << 8;
    for (size_t i = 0; i < n; i++) marks[i] = bits >> i & 1;
    return (bits & ((1u << n) - 1)) != 0;
}

static int signs_exceed(const dp_sign_queries *q, const dp_sign_tokens *t, uint8_t *marks)
{
    lines ahead = {(uintptr_t)t->ahead, t->ahead_lines};
    int any = 0;
    for (size_t i = 0; i < t->n; i += DP_SIGN_GROUP) {
        const size_t left = t->n - i, n = left < DP_SIGN_GROUP ? left : DP_SIGN_GROUP;
        const uint8_t *const group = t->signs + i / DP_SIGN_GROUP * 2 * q->d;
        uint8_t bytes[DP_SIGN_GROUP] = {0};
        memcpy(bytes, t->step + i, n);
        const __m256 first = steps_of(bytes, t->step_base), second = steps_of(bytes + 8, t->step_base);
        fetch_lines(&ahead, (2 * q->d + 63) / 64);
        __m256 low = _mm256_setzero_ps(), high = low;
        for (size_t h = 0; h < q->heads; h += HEADS) {
            const size_t heads = q->heads - h < HEADS ? q->heads - h : HEADS;
            __m256i sums[HEADS];
            sum_group_of(q, h, group, sums, heads);
            for (size_t j = 0; j < heads; j++) {
                low = _mm256_or_ps(low, beyond(q, h + j, _mm256_castsi256_si128(sums[j]), first));
                high = _mm256_or_ps(high, beyond(q, h + j, _mm256_extracti128_si256(sums[j], 1), second));
            }
        }
        any |= mark(marks + i, n, low, high);
    }
    return any;
}

void dp_avx2_init_signs(dp_kernels *k)
{
    k->signs_exceed = signs_exceed;
}
