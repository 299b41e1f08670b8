/* NEON token attention: logits of key rows, weighted sums of value rows.
 *
 * A row is widened once for up to four heads. Logits of up to 8 (row, head) pairs, each in two vectors, are summed across
 * lanes in transposing reductions. */
#include "neon.h"

#include "../int8_rows.h"
#include "../row_groups.h"

enum { PAIRS = 8 };

/* heads * n_rows <= PAIRS. */
DP_INLINE void logit_tile(const float *q, size_t d, const dp_row row[], const dp_row next[], float scale,
                          float out[TILE_PAIRS], size_t heads, size_t n_rows, dp_type type)
{
    dp_block sum[PAIRS];
    DP_UNROLL
    for (size_t i = 0; i < PAIRS; i++)
        sum[i] = (dp_block){vdupq_n_f32(0), vdupq_n_f32(0)};
    for (size_t j = 0; j < d; j += DP_BLOCK) {
        dp_block k[PAIRS];
        DP_UNROLL
        for (size_t r = 0; r < n_rows; r++) {
            prefetch_block(dp_row_address(next[r]), j, DP_BLOCK, type);
            k[r] = dp_load_block(dp_row_address(row[r]), j, type);
        }
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            const dp_block x = dp_load_block(q + h * d, j, DP_F32);
            DP_UNROLL
            for (size_t r = 0; r < n_rows; r++) {
                dp_block *s = &sum[h * n_rows + r];
                s->first = vfmaq_f32(s->first, x.first, k[r].first);
                s->second = vfmaq_f32(s->second, x.second, k[r].second);
            }
        }
    }
    float32x4_t total[PAIRS];
    DP_UNROLL
    for (size_t i = 0; i < PAIRS; i++)
        total[i] = vaddq_f32(sum[i].first, sum[i].second);
    vst1q_f32(out, vmulq_n_f32(dp_sum_lanes_4(total), scale));
    vst1q_f32(out + 4, vmulq_n_f32(dp_sum_lanes_4(total + 4), scale));
}

/* Logits for `heads` (a constant) heads. */
DP_INLINE void group_logits(const float *q, size_t d, const dp_row *rows, size_t n, share ahead, float scale,
                            float *out, size_t out_stride, size_t heads, dp_type type)
{
    logits_in_tiles(q, d, rows, n, ahead, scale, out, out_stride, heads, heads <= 2 ? 4 : 2, logit_tile, type);
}

DP_INLINE void value_tile(const float *w, size_t w_stride, size_t d, size_t padded, const dp_row row[], const dp_row next[],
                          float *acc, size_t heads, size_t n_rows, dp_type type)
{
    for (size_t j = 0; j < d; j += DP_BLOCK) {
        dp_block sum[GROUP];
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) sum[h] = dp_load_block(acc + h * padded, j, DP_F32);
        DP_UNROLL
        for (size_t r = 0; r < n_rows; r++) {
            prefetch_block(dp_row_address(next[r]), j, DP_BLOCK, type);
            const dp_block v = dp_load_block(dp_row_address(row[r]), j, type);
            DP_UNROLL
            for (size_t h = 0; h < heads; h++) {
                sum[h].first = vfmaq_n_f32(sum[h].first, v.first, w[h * w_stride + r]);
                sum[h].second = vfmaq_n_f32(sum[h].second, v.second, w[h * w_stride + r]);
            }
        }
        DP_UNROLL
        for (size_t h = 0; h < heads; h++) {
            vst1q_f32(acc + h * padded + j, sum[h].first);
            vst1q_f32(acc + h * padded + j + 4, sum[h].second);
        }
    }
}

/* Sums for `heads` (a constant) heads, in their place: columns are in their own order. */
DP_INLINE void group_values(const float *w, size_t w_stride, const dp_row *rows, size_t n, share ahead, size_t d,
                            float *acc, size_t heads, dp_type type)
{
    add_tiles(w, w_stride, rows, n, ahead, d, d, acc, heads, value_tile, type);
}

DP_ROWS(f32, DP_F32, 4)
DP_ROWS(f16, DP_F16, 4)
DP_ROWS(bf16, DP_BF16, 4)
DP_ROWS(int8, DP_INT8, 4)
DP_INT8_ROWS

void dp_neon_init_rows(dp_kernels *k)
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
