/* AVX2 logits of keys in four bits, and of their signs. Of the former 8 tokens at a time are unpacked to bytes once for
 * all heads, bytes are multiplied and added in 16-bit lanes, which hold 256 dimensions (16 products of at most 1905 a
 * lane), and the lanes of 8 tokens are summed together. */
#include <string.h>

#include "avx2.h"

enum { TOKENS = 8, BLOCK = 32, DIMS_OF_16_BITS = 256 };

/* n bytes, zeros behind them up to a block. */
DP_INLINE __m256i load_bytes(const void *x, size_t n)
{
    if (n >= BLOCK) return _mm256_loadu_si256((const __m256i *)x);
    _Alignas(32) uint8_t part[BLOCK] = {0};
    memcpy(part, x, n);
    return _mm256_load_si256((const __m256i *)(const void *)part);
}

/* Both halves of the codes of a token, then zeros up to a block. */
DP_INLINE void unpack(const uint8_t *codes, size_t half, uint8_t *bytes)
{
    const __m256i low_half = _mm256_set1_epi8(15);
    for (size_t j = 0; j < half; j += BLOCK) {
        const __m256i packed = load_bytes(codes + j, half - j);
        _mm256_storeu_si256((__m256i *)(void *)(bytes + j), _mm256_and_si256(packed, low_half));
    }
    _mm256_storeu_si256((__m256i *)(void *)(bytes + 2 * half), _mm256_setzero_si256());
    for (size_t j = 0; j < half; j += BLOCK) {
        const __m256i packed = load_bytes(codes + j, half - j);
        _mm256_storeu_si256((__m256i *)(void *)(bytes + half + j),
                            _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_half));
    }
}

static void code_logits(const int8_t *q, const float *factor, size_t heads, size_t d, const uint8_t *codes,
                        const uint16_t *step, size_t n, float *out, size_t out_stride)
{
    _Alignas(32) uint8_t bytes[TOKENS][DP_MAX_DIM + BLOCK];
    const __m256i ones = _mm256_set1_epi16(1), byte_ones = _mm256_set1_epi8(1);
    for (size_t i = 0; i < n; i += TOKENS) {
        const size_t tokens = n - i < TOKENS ? n - i : TOKENS;
        for (size_t t = 0; t < tokens; t++) unpack(codes + (i + t) * (d / 2), d / 2, bytes[t]);
        const __m256 steps = dp_load_first_bf16(step + i, tokens);
        for (size_t h = 0; h < heads; h++) {
            __m256i all[TOKENS]; /* 2 sum q code - 15 sum q, lane by lane: exact in f32 */
            for (size_t t = 0; t < TOKENS; t++) all[t] = _mm256_setzero_si256();
            for (size_t first = 0; first < d; first += DIMS_OF_16_BITS) {
                const size_t last = d - first < DIMS_OF_16_BITS ? d : first + DIMS_OF_16_BITS;
                __m256i part[TOKENS], sum_of_q = _mm256_setzero_si256();
                for (size_t t = 0; t < TOKENS; t++) part[t] = _mm256_setzero_si256();
                for (size_t j = first; j < last; j += BLOCK) {
                    const __m256i x = load_bytes(q + h * d + j, last - j);
                    sum_of_q = _mm256_add_epi16(sum_of_q, _mm256_maddubs_epi16(byte_ones, x));
                    for (size_t t = 0; t < tokens; t++) /* what is left of an earlier token meets zeros */
                        part[t] = _mm256_add_epi16(
                            part[t],
                            _mm256_maddubs_epi16(_mm256_load_si256((const __m256i *)(void *)(bytes[t] + j)), x));
                }
                const __m256i of_15 = _mm256_mullo_epi32(_mm256_madd_epi16(sum_of_q, ones), _mm256_set1_epi32(15));
                for (size_t t = 0; t < tokens; t++)
                    all[t] = _mm256_add_epi32(
                        all[t], _mm256_sub_epi32(_mm256_slli_epi32(_mm256_madd_epi16(part[t], ones), 1), of_15));
            }
            __m256 lanes[TOKENS];
            for (size_t t = 0; t < TOKENS; t++) lanes[t] = _mm256_cvtepi32_ps(all[t]);
            dp_store_first(out + h * out_stride + i, tokens,
                           _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(factor[h]), steps), dp_sum_lanes_8(lanes)));
        }
    }
}

/* 32 bits, each as a byte of all ones or zeros. */
DP_INLINE __m256i spread_bits(uint32_t bits)
{
    const __m256i which = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), which);
    return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

/* Twice the sum of the elements whose bit is set, less the sum of all, is the sum with signs. 16-bit lanes hold all of
 * DP_MAX_DIM here. */
static void sign_logits(const int8_t *q, const float *factor, size_t heads, size_t d, const uint8_t *signs,
                        const uint16_t *step, size_t n, float *out, size_t out_stride)
{
    const __m256i ones = _mm256_set1_epi16(1), byte_ones = _mm256_set1_epi8(1);
    for (size_t i = 0; i < n; i += TOKENS, signs += TOKENS * (d / 8)) {
        const size_t tokens = n - i < TOKENS ? n - i : TOKENS;
        const __m256 steps = dp_load_first_bf16(step + i, tokens);
        for (size_t h = 0; h < heads; h++) {
            __m256i part[TOKENS], sum_of_q = _mm256_setzero_si256();
            for (size_t t = 0; t < TOKENS; t++) part[t] = _mm256_setzero_si256();
            for (size_t j = 0; j < d; j += BLOCK) {
                const __m256i x = load_bytes(q + h * d + j, d - j);
                sum_of_q = _mm256_add_epi16(sum_of_q, _mm256_maddubs_epi16(byte_ones, x));
                for (size_t t = 0; t < tokens; t++) {
                    uint32_t bits = 0;
                    if (d - j >= BLOCK)
                        memcpy(&bits, signs + t * (d / 8) + j / 8, sizeof bits);
                    else
                        memcpy(&bits, signs + t * (d / 8) + j / 8, (d - j) / 8);
                    part[t] = _mm256_add_epi16(part[t],
                                               _mm256_maddubs_epi16(byte_ones, _mm256_and_si256(spread_bits(bits), x)));
                }
            }
            const __m256i of_all = _mm256_madd_epi16(sum_of_q, ones);
            __m256 lanes[TOKENS];
            for (size_t t = 0; t < TOKENS; t++)
                lanes[t] = _mm256_cvtepi32_ps(
                    _mm256_sub_epi32(_mm256_slli_epi32(_mm256_madd_epi16(part[t], ones), 1), of_all));
            dp_store_first(out + h * out_stride + i, tokens,
                           _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(factor[h]), steps), dp_sum_lanes_8(lanes)));
        }
    }
}

void dp_avx2_init_codes(dp_kernels *k)
{
    k->code_logits = code_logits;
    k->sign_logits = sign_logits;
}
