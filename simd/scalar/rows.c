/* Scalar token attention: logits of key rows, weighted sums of value rows. A row is widened to f32 once, in pieces,
 * and serves all heads. */
#include "scalar.h"

#include "../int8_rows.h"

enum { PIECE = 128 };

DP_INLINE void widen(float *piece, const void *row, size_t first, size_t n, dp_type type)
{
    for (size_t j = 0; j < n; j++) piece[j] = dp_element(row, first + j, type);
}

DP_INLINE void key_logits(const float *q, size_t heads, size_t d, const dp_row *rows, size_t n, float scale,
                          float *out, size_t out_stride, dp_type type)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t h = 0; h < heads; h++) out[h * out_stride + i] = 0;
        for (size_t j = 0; j < d; j += PIECE) {
            const size_t width = d - j < PIECE ? d - j : PIECE;
            float piece[PIECE];
            widen(piece, dp_row_address(rows[i]), j, width, type);
            for (size_t h = 0; h < heads; h++)
                out[h * out_stride + i] += dp_dot_interleaved(q + h * d + j, piece, width);
        }
        for (size_t h = 0; h < heads; h++) out[h * out_stride + i] *= scale;
    }
}

DP_INLINE void weighted_values(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,
                               size_t d, float *acc, dp_type type)
{
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j += PIECE) {
            const size_t width = d - j < PIECE ? d - j : PIECE;
            float piece[PIECE];
            widen(piece, dp_row_address(rows[i]), j, width, type);
            for (size_t h = 0; h < heads; h++) {
                const float weight = w[h * w_stride + i];
                float *sum = acc + h * d + j;
                for (size_t l = 0; l < width; l++) sum[l] += weight * piece[l];
            }
        }
    }
}

#define DP_ROWS(name, type)                                                                                            \
    static void key_logits_##name(const float *q, size_t heads, size_t d, const dp_row *rows, size_t n,           \
                                  size_t ahead, float scale, float *out, size_t out_stride)                            \
    {                                                                                                                  \
        (void)ahead; /* the arithmetic takes longer than memory */                                                     \
        key_logits(q, heads, d, rows, n, scale, out, out_stride, type);                                                \
    }                                                                                                                  \
    static void weighted_values_##name(const float *w, size_t w_stride, size_t heads, const dp_row *rows,         \
                                       size_t n, size_t ahead, size_t d, float *acc)                                   \
    {                                                                                                                  \
        (void)ahead;                                                                                                   \
        weighted_values(w, w_stride, heads, rows, n, d, acc, type);                                                    \
    }

DP_ROWS(f32, DP_F32)
DP_ROWS(f16, DP_F16)
DP_ROWS(bf16, DP_BF16)
DP_ROWS(int8, DP_INT8)
DP_INT8_ROWS

void dp_scalar_init_rows(dp_kernels *k)
{
    k->key_logits[DP_F32] = key_logits_f32;
    k->key_logits[DP_F16] = key_logits_f16;
    k->key_logits[DP_BF16] = key_logits_bf16;
    k->weighted_values[DP_F32] = weighted_values_f32;
    k->weighted_values[DP_F16] = weighted_values_f16;
    k->weighted_values[DP_BF16] = weighted_values_bf16;
    k->key_logits[DP_INT8] = key_logits_of_int8;
    k->weighted_values[DP_INT8] = weighted_values_of_int8;
}
