/* Queries in two bytes an element, for instructions that multiply bytes and add the products up: element j of head h is
 * unit[h] * (256 high[h][j] + low[h][j]), to 2^-16 of the head's largest. The error of a score is that times the sum of the
 * centroid's elements' magnitudes: a ten thousandth of what logits are of, or less. */
#ifndef DP_SIMD_QUERY_BYTES_H
#define DP_SIMD_QUERY_BYTES_H

#include <math.h>
#include <string.h>

#include "inline.h"
#include "kernels.h"
#include "quantise.h"

enum { BYTE_HEADS = 16, BYTE_MOST = 127 * 256 };

typedef struct query_bytes {
    int8_t high[BYTE_HEADS][DP_MAX_DIM], low[BYTE_HEADS][DP_MAX_DIM];
    int32_t sum_high[BYTE_HEADS], sum_low[BYTE_HEADS];
    float unit[BYTE_HEADS];
    int usable[BYTE_HEADS]; /* 0: NaN, Inf, or next to nothing; bytes are 0 then */
} query_bytes;

/* Loops that compilers vectorise. */
DP_INLINE void round_query(query_bytes *b, size_t h, const float *q, size_t d)
{
    const float largest = dp_largest_magnitude(q, d);
    b->usable[h] = largest == 0 || (isfinite(largest) && largest >= 0x1p-100f);
    b->unit[h] = b->usable[h] ? largest / BYTE_MOST : 0.0f;
    const float inverse = largest > 0 ? BYTE_MOST / largest : 0.0f;
    int8_t *const restrict high = b->high[h], *const restrict low = b->low[h];
    int32_t sum_high = 0, sum_low = 0;
    const size_t n = b->usable[h] ? d : 0;
    memset(high + n, 0, d - n);
    memset(low + n, 0, d - n);
    for (size_t j = 0; j < n; j++) {
        /* To the nearest: at 1.5 * 2^23 + v a float's last bits are v's, and its bits are the whole number's. */
        float x = q[j] * inverse + 0x1.8p23f;
        int32_t v;
        memcpy(&v, &x, sizeof v);
        v -= 0x4b400000;
        const int32_t upper = (v + 128) >> 8, lower = v - 256 * upper;
        high[j] = (int8_t)upper;
        low[j] = (int8_t)lower;
        sum_high += upper;
        sum_low += lower;
    }
    b->sum_high[h] = sum_high;
    b->sum_low[h] = sum_low;
}

/* Scores of the panels for the n heads of b. */
typedef void byte_scores_fn(const query_bytes *b, size_t n, size_t d, const int8_t *panels, size_t n_panels, float *out,
                            size_t out_stride);

/* score_panels by products of bytes, in f32 where a head's queries do not fit them. */
DP_INLINE void scores_in_bytes(const float *q, size_t heads, size_t d, const int8_t *panels, size_t n_panels,
                               float *out, size_t out_stride, byte_scores_fn *in_bytes, dp_score_panels_fn in_f32)
{
    query_bytes b;
    for (size_t h = 0; h < heads; h += BYTE_HEADS) {
        const size_t n = heads - h < BYTE_HEADS ? heads - h : BYTE_HEADS;
        float *const scores = out + h * out_stride;
        for (size_t i = 0; i < n; i++) round_query(&b, i, q + (h + i) * d, d);
        in_bytes(&b, n, d, panels, n_panels, scores, out_stride);
        for (size_t i = 0; i < n; i++)
            if (!b.usable[i]) in_f32(q + (h + i) * d, 1, d, panels, n_panels, scores + i * out_stride, out_stride);
    }
}

/* Four bytes as the lane of a vector. */
DP_INLINE int32_t four_bytes(const int8_t *x)
{
    int32_t lane;
    memcpy(&lane, x, sizeof lane);
    return lane;
}

#endif
