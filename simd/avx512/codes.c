/* AVX-512 logits of keys in four bits, and of their signs. Of the former 16 tokens at a time are unpacked to bytes
 * once for all heads, bytes are multiplied and added in 16-bit lanes, which hold all of DP_MAX_DIM (16 products of at
 * most 2 * 15 * 127 a lane), and the lanes of 16 tokens are summed together. */
#include <string.h>

#include "avx512.h"

enum { TOKENS = 16 };

static void code_logits(const int8_t *q, const float *factor, size_t heads, size_t d, const uint8_t *codes,
                        const uint16_t *step, size_t n, float *out, size_t out_stride)
{
    _Alignas(64) uint8_t bytes[TOKENS][DP_MAX_DIM];
    const __m512i low_half = _mm512_set1_epi8(15), ones = _mm512_set1_epi16(1), byte_ones = _mm512_set1_epi8(1);
    const size_t half = d / 2;
    for (size_t i = 0; i < n; i += TOKENS, codes += TOKENS * half) {
        const size_t tokens = n - i < TOKENS ? n - i : TOKENS;
        for (size_t t = 0; t < tokens; t++)
            for (size_t j = 0; j < half; j += 64) {
                const __mmask64 mask = half - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (half - j)) - 1;
                const __m512i packed = _mm512_maskz_loadu_epi8(mask, codes + t * half + j);
                _mm512_mask_storeu_epi8(bytes[t] + j, mask, _mm512_and_si512(packed, low_half));
                _mm512_mask_storeu_epi8(bytes[t] + half + j, mask,
                                        _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_half));
            }
        const __mmask16 real = dp_mask16(tokens);
        const __m512 steps = dp_load_bf16(real, step + i);
        for (size_t h = 0; h < heads; h++) {
            __m512i all[TOKENS], sum_of_q = _mm512_setzero_si512();
            DP_UNROLL
            for (size_t t = 0; t < TOKENS; t++) all[t] = _mm512_setzero_si512();
            for (size_t j = 0; j < d; j += 64) {
                const __mmask64 mask = d - j >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (d - j)) - 1;
                const __m512i x = _mm512_maskz_loadu_epi8(mask, q + h * d + j);
                sum_of_q = _mm512_add_epi16(sum_of_q, _mm512_maddubs_epi16(byte_ones, x));
                for (size_t t = 0; t < tokens; t++)
                    all[t] =
                        _mm512_add_epi16(all[t], _mm512_maddubs_epi16(_mm512_maskz_loadu_epi8(mask, bytes[t] + j), x));
            }
            /* sum q (2 code - 15), lane by lane: exact in f32 */
            __m512 lanes[TOKENS];
            const __m512i of_15 = _mm512_mullo_epi32(_mm512_madd_epi16(sum_of_q, ones), _mm512_set1_epi32(15));
            DP_UNROLL
            for (size_t t = 0; t < TOKENS; t++)
                lanes[t] =
                    _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_slli_epi32(_mm512_madd_epi16(all[t], ones), 1), of_15));
            _mm512_mask_storeu_ps(
                out + h * out_stride + i, real,
                _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(factor[h]), steps), dp_sum_lanes_16(lanes)));
        }
    }
}

/* Signs are masks: of the bytes of q they let pass those to be added, and twice that sum less the sum of all is the sum with
 * signs. */
static void sign_logits(const int8_t *q, const float *factor, size_t heads, size_t d, const uint8_t *signs,
                        const uint16_t *step, size_t n, float *out, size_t out_stride)
{
    const __m512i ones = _mm512_set1_epi16(1), byte_ones = _mm512_set1_epi8(1);
    for (size_t i = 0; i < n; i += TOKENS, signs += TOKENS * (d / 8)) {
        const size_t tokens = n - i < TOKENS ? n - i : TOKENS;
        const __mmask16 real = dp_mask16(tokens);
        const __m512 steps = dp_load_bf16(real, step + i);
        for (size_t h = 0; h < heads; h++) {
            __m512i all[TOKENS], sum_of_q = _mm512_setzero_si512();
            DP_UNROLL
            for (size_t t = 0; t < TOKENS; t++) all[t] = _mm512_setzero_si512();
            for (size_t j = 0; j < d; j += 64) {
                const size_t bytes = d - j >= 64 ? 8 : (d - j) / 8;
                const __mmask64 mask = bytes == 8 ? ~(__mmask64)0 : ((__mmask64)1 << (8 * bytes)) - 1;
                const __m512i x = _mm512_maskz_loadu_epi8(mask, q + h * d + j);
                sum_of_q = _mm512_add_epi16(sum_of_q, _mm512_maddubs_epi16(byte_ones, x));
                for (size_t t = 0; t < tokens; t++) {
                    uint64_t set = 0;
                    if (bytes == sizeof set)
                        memcpy(&set, signs + t * (d / 8) + j / 8, sizeof set);
                    else
                        memcpy(&set, signs + t * (d / 8) + j / 8, bytes);
                    all[t] = _mm512_add_epi16(
                        all[t], _mm512_maddubs_epi16(byte_ones, _mm512_maskz_mov_epi8((__mmask64)set, x)));
                }
            }
            __m512 lanes[TOKENS]; /* lane by lane: exact in f32 */
            const __m512i of_all = _mm512_madd_epi16(sum_of_q, ones);
            DP_UNROLL
            for (size_t t = 0; t < TOKENS; t++)
                lanes[t] =
                    _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_slli_epi32(_mm512_madd_epi16(all[t], ones), 1), of_all));
            _mm512_mask_storeu_ps(
                out + h * out_stride + i, real,
                _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(factor[h]), steps), dp_sum_lanes_16(lanes)));
        }
    }
}

void dp_avx512_init_codes(dp_kernels *k)
{
    k->code_logits = code_logits;
    k->sign_logits = sign_logits;
}
