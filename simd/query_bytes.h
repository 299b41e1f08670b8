/* Queries in two bytes an element, for instructions that multiply bytes and add the products up: element j of head h is
 * unit[h] * (256 high[h][j] + low[h][j]), to 2^-16 of the head's largest. The error of a score is that times the sum of the
 * centroid's elements' magnitudes: a ten thousandth of what logits are of, or less. */
#ifndef DP_SIMD_QUERY_BYTES_H
#define DP_SIMD_QUERY_BYTES_H

#include <string.h>

#include "inline.h"
#include "kernels.h"

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
    uint32_t top = 0; /* magnitudes are in the order of their bits, NaN and Inf above all */
    for (size_t j = 0; j < d; j++) {
        uint32_t bits;
        memcpy(&bits, q + j, sizeof bits);
        bits &= 0x7fffffffu;
        top = bits > top ? bits : top;
    }
    float largest;
    memcpy(&largest, &top, sizeof largest);
    b->usable[h] = top == 0 || (top < 0x7f800000u && largest >= 0x1p-100f);
    b->unit[h] = b->usable[h] ? largest / BYTE_MOST : 0.0f;
    const float inverse = b->usable[h] && top ? BYTE_MOST / largest : 0.0f;
    int8_t *const restrict high = b->high[h], *const restrict low = b->low[h];
    int32_t sum_high = 0, sum_low = 0;
    for (size_t j = 0; j < d; j++) {
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

/* Four bytes as the lane of a vector. */
DP_INLINE int32_t four_bytes(const int8_t *x)
{
    int32_t lane;
    memcpy(&lane, x, sizeof lane);
    return lane;
}

#endif
