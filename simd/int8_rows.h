/* Rows of int8: the conversions, and attention over them by kernels that take their elements as whole numbers. For the instruction
 * set of the file that includes it. */
#ifndef DP_SIMD_INT8_ROWS_H
#define DP_SIMD_INT8_ROWS_H

#include <string.h>

#include "inline.h"
#include "kernels.h"
#include "quantise.h"

enum { INT8_ROWS = 64, INT8_HEADS = 8 }; /* whose weights are in units of steps at a time */

DP_INLINE float int8_step(const void *row, size_t d)
{
    float step;
    memcpy(&step, (const char *)row + d, sizeof step);
    return step;
}

static inline void to_f32_from_int8(float *dst, const void *src, size_t n)
{
    const float step = int8_step(src, n);
    const int8_t *const row = src;
    for (size_t j = 0; j < n; j++) dst[j] = step * (float)row[j];
}

static inline void from_f32_to_int8(void *dst, const float *src, size_t n)
{
    const float step = dp_quantise(src, n, dst);
    memcpy((char *)dst + n, &step, sizeof step);
}

/* key_logits from logits of the whole numbers. */
DP_INLINE void key_logits_with_steps(const float *q, size_t heads, size_t d, const dp_row *rows, size_t n, size_t ahead,
                                     float scale, float *out, size_t out_stride, dp_key_logits_fn whole)
{
    whole(q, heads, d, rows, n, ahead, scale, out, out_stride);
    for (size_t first = 0; first < n; first += INT8_ROWS) {
        const size_t some = n - first < INT8_ROWS ? n - first : INT8_ROWS;
        float step[INT8_ROWS];
        for (size_t i = 0; i < some; i++) step[i] = int8_step(dp_row_address(rows[first + i]), d);
        for (size_t h = 0; h < heads; h++)
            for (size_t i = 0; i < some; i++) out[h * out_stride + first + i] *= step[i];
    }
}

/* weighted_values from sums of the whole numbers. The first heads fetch for all. */
DP_INLINE void weighted_values_with_steps(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,
                                          size_t ahead, size_t d, float *acc, dp_weighted_values_fn whole)
{
    for (size_t first = 0; first < n; first += INT8_ROWS) {
        const size_t some = n - first < INT8_ROWS ? n - first : INT8_ROWS, after = n - first - some + ahead;
        float step[INT8_ROWS], weights[INT8_HEADS * INT8_ROWS];
        for (size_t i = 0; i < some; i++) step[i] = int8_step(dp_row_address(rows[first + i]), d);
        for (size_t h = 0; h < heads; h += INT8_HEADS) {
            const size_t taken = heads - h < INT8_HEADS ? heads - h : INT8_HEADS;
            for (size_t g = 0; g < taken; g++)
                for (size_t i = 0; i < some; i++)
                    weights[g * INT8_ROWS + i] = w[(h + g) * w_stride + first + i] * step[i];
            whole(weights, INT8_ROWS, taken, rows + first, some, h ? 0 : after, d, acc + h * d);
        }
    }
}

/* The kernels of the table over those for whole numbers, key_logits_int8 and weighted_values_int8. */
#define DP_INT8_ROWS                                                                                                   \
    static void key_logits_of_int8(const float *q, size_t heads, size_t d, const dp_row *rows, size_t n, size_t ahead, \
                                   float scale, float *out, size_t out_stride)                                         \
    {                                                                                                                  \
        key_logits_with_steps(q, heads, d, rows, n, ahead, scale, out, out_stride, key_logits_int8);                   \
    }                                                                                                                  \
    static void weighted_values_of_int8(const float *w, size_t w_stride, size_t heads, const dp_row *rows, size_t n,   \
                                        size_t ahead, size_t d, float *acc)                                            \
    {                                                                                                                  \
        weighted_values_with_steps(w, w_stride, heads, rows, n, ahead, d, acc, weighted_values_int8);                  \
    }

#endif
