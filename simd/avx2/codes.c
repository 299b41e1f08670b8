/* AVX2 logits of keys in four bits. A vector has 8 dimensions of a group's four tokens; 8 tokens and up to four heads are
 * summed in registers, and what is unpacked serves all heads. */
#include <string.h>

#include "avx2.h"

#include "../lines.h"

enum { GROUPS = 2, TOKENS = GROUPS * DP_CODE_GROUP, HEADS = 4, VECTOR = 32 };

/* sum[lane] + the products of four unsigned bytes below 16 and four signed ones: two of them fit 16 bits. */
DP_INLINE __m256i dot4(__m256i sum, __m256i small, __m256i q)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(small, q), _mm256_set1_epi16(1)));
}

/* A vector, or half of one, zeros behind it, where no more is left: d / 2 is a multiple of four, so bytes are of 16. */
DP_INLINE __m256i load_bytes(const void *x, size_t left)
{
    if (left >= VECTOR) return _mm256_loadu_si256((const __m256i *)x);
    return _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)x));
}

/* Lane i is the sum of token i; sum[g] has two numbers of each token of group g. */
DP_INLINE __m256i fold(const __m256i sum[GROUPS])
{
    return _mm256_add_epi32(_mm256_permute2x128_si256(sum[0], sum[1], 0x20),
                            _mm256_permute2x128_si256(sum[0], sum[1], 0x31));
}

/* out[h] = sum_j q(h, j) code(i, j) of the tokens of one or two groups; `heads` is a constant. */
DP_INLINE void code_block(const int8_t *q, size_t d, const uint8_t *codes, size_t groups, __m256i out[HEADS],
                          size_t heads)
{
    const __m256i low_half = _mm256_set1_epi8(15);
    __m256i sum[HEADS][GROUPS];
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) sum[h][0] = sum[h][1] = _mm256_setzero_si256();
    const size_t bytes = 2 * d;
    for (size_t j = 0; j < bytes; j += VECTOR) {
        DP_UNROLL
        for (size_t g = 0; g < GROUPS; g++) {
            const __m256i packed = load_bytes(codes + (g < groups ? g : 0) * bytes + j, bytes - j);
            const __m256i low = _mm256_and_si256(packed, low_half);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_half);
            DP_UNROLL
            for (size_t h = 0; h < heads; h++) {
                const int8_t *const x = q + h * 4 * d + j;
                sum[h][g] = dot4(sum[h][g], low, load_bytes(x, bytes - j));
                sum[h][g] = dot4(sum[h][g], high, load_bytes(x + bytes, bytes - j));
            }
        }
    }
    DP_UNROLL
    for (size_t h = 0; h < heads; h++) out[h] = fold(sum[h]);
}

DP_INLINE void block_of_heads(const int8_t *q, size_t d, const uint8_t *codes, size_t groups, __m256i out[HEADS],
                              size_t heads)
{
    switch (heads) {
    case 1: code_block(q, d, codes, groups, out, 1); break;
    case 2: code_block(q, d, codes, groups, out, 2); break;
    case 3: code_block(q, d, codes, groups, out, 3); break;
    default: code_block(q, d, codes, groups, out, 4);
    }
}

/* Tokens first .. first + 7 of those from the groups' start on: those asked for are [from, to), in groups. */
typedef struct window {
    size_t from, to, groups;
} window;

DP_INLINE window window_at(size_t first, const dp_code_tokens *t)
{
    const size_t left = t->skip + t->n - first, to = left < TOKENS ? left : TOKENS;
    return (window){first < t->skip ? t->skip : 0, to, (to + DP_CODE_GROUP - 1) / DP_CODE_GROUP};
}

/* The window's tokens' steps, from lane 0 on. */
DP_INLINE __m256 steps_at(size_t first, window w, const dp_code_tokens *t)
{
    uint64_t bytes = 0;
    memcpy(&bytes, t->step + first + w.from, w.to - w.from);
    const __m256i words = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)bytes));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(words, 19), _mm256_set1_epi32((int)t->step_base)));
}

/* Logits of the window's tokens, from lane 0 on. */
DP_INLINE __m256 finish(__m256i sums, int32_t centre, float factor, __m256 steps, window w)
{
    const __m256i sum = _mm256_sub_epi32(_mm256_slli_epi32(sums, 1), _mm256_set1_epi32(centre));
    const __m256i first = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((int)w.from));
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(factor), steps),
                         _mm256_cvtepi32_ps(_mm256_permutevar8x32_epi32(sum, first)));
}

static void code_logits(const dp_code_queries *q, const dp_code_tokens *t, float *out, size_t out_stride)
{
    size_t stored = 0;
    lines ahead = {(uintptr_t)t->ahead, t->ahead_lines};
    for (size_t first = 0; first < t->skip + t->n && t->n; first += TOKENS) {
        const window w = window_at(first, t);
        const __m256 steps = steps_at(first, w, t);
        fetch_lines(&ahead, (2 * q->d * GROUPS + 63) / 64);
        for (size_t h = 0; h < q->heads; h += HEADS) {
            const size_t heads = q->heads - h < HEADS ? q->heads - h : HEADS;
            __m256i sums[HEADS];
            block_of_heads(q->q + h * 4 * q->d, q->d, t->codes + first / DP_CODE_GROUP * 2 * q->d, w.groups, sums,
                           heads);
            for (size_t i = 0; i < heads; i++)
                dp_store_first(out + (h + i) * out_stride + stored, w.to - w.from,
                               finish(sums[i], 15 * q->sum_of_q[h + i], q->factor[h + i], steps, w));
        }
        stored += w.to - w.from;
    }
}

void dp_avx2_init_codes(dp_kernels *k)
{
    k->code_logits = code_logits;
}
