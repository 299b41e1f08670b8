/* Rows in int8 with a step. Loops that compilers vectorise: with lrintf and fabsf it took a tenth of the index's time.
 * Everything is static: an ISA's object must not export code that other translation units could pick up. */
#ifndef DP_SIMD_QUANTISE_H
#define DP_SIMD_QUANTISE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The largest magnitude; Inf or NaN where a number is not finite: by bits, which are in the order of magnitudes, Inf and NaN
 * above all others. */
static inline float dp_largest_magnitude(const float *x, size_t n)
{
    uint32_t largest = 0;
    for (size_t j = 0; j < n; j++) {
        uint32_t bits;
        memcpy(&bits, x + j, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    return magnitude;
}

/* Rounds to int8 in units of the returned step: the largest magnitude is 127. The step is NaN where a number is not finite,
 * and 0 where all are so small that 1 / step is not; then all bytes are 0. */
static inline float dp_quantise(const float *restrict x, size_t n, int8_t *restrict rounded)
{
    const float whole = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest whole number */
    const float largest = dp_largest_magnitude(x, n), step = largest / 127.0f, inverse = step > 0 ? 1.0f / step : 0.0f;
    if (!isfinite(largest) || !isfinite(inverse)) {
        memset(rounded, 0, n);
        return isfinite(largest) ? 0.0f : NAN;
    }
    for (size_t j = 0; j < n; j++) rounded[j] = (int8_t)(int32_t)((x[j] * inverse + whole) - whole);
    return step;
}

/* The same row by row. */
static inline void dp_quantise_rows(const float *x, size_t n_rows, size_t n, int8_t *rounded, float *steps)
{
    for (size_t r = 0; r < n_rows; r++) steps[r] = dp_quantise(x + r * n, n, rounded + r * n);
}

#endif
