/* quantise.c: see quantise.h. Loops that compilers vectorise: with lrintf and fabsf it took a tenth of the index's time. */
#include "index/quantise.h"

#include <math.h>
#include <string.h>

/* By bits, which are in the order of magnitudes: Inf and NaN are above all others. */
float dp_largest_magnitude(const float *x, size_t n)
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

static const float whole = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest whole number */

float dp_quantise(const float *restrict x, size_t n, int8_t *restrict rounded)
{
    const float largest = dp_largest_magnitude(x, n), step = largest / 127.0f, inverse = step > 0 ? 1.0f / step : 0.0f;
    if (!isfinite(largest) || !isfinite(inverse)) {
        memset(rounded, 0, n);
        return isfinite(largest) ? 0.0f : NAN;
    }
    for (size_t j = 0; j < n; j++) rounded[j] = (int8_t)(int32_t)((x[j] * inverse + whole) - whole);
    return step;
}

void dp_quantise_rows(const float *x, size_t n_rows, size_t n, int8_t *rounded, float *steps)
{
    for (size_t r = 0; r < n_rows; r++) steps[r] = dp_quantise(x + r * n, n, rounded + r * n);
}
