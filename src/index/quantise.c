/* quantise.c: see quantise.h. Loops that compilers vectorise: with lrintf and fabsf it took a tenth of the index's time. */
#include "index/quantise.h"

#include <math.h>
#include <string.h>

/* The largest magnitude, by its bits, which are in the order of magnitudes: Inf and NaN are above all others. */
static float largest_magnitude(const float *x, size_t n)
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

float dp_quantise(const float *x, size_t n, int8_t *rounded)
{
    const float largest = largest_magnitude(x, n), step = largest / 127.0f, inverse = step > 0 ? 1.0f / step : 0.0f;
    if (!isfinite(largest) || !isfinite(inverse)) {
        memset(rounded, 0, n);
        return isfinite(largest) ? 0.0f : NAN;
    }
    for (size_t j = 0; j < n; j++) {
        static const float whole = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest whole number */
        rounded[j] = (int8_t)(int32_t)((x[j] * inverse + whole) - whole);
    }
    return step;
}
