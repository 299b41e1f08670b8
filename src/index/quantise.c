/* quantise.c: see quantise.h. */
#include "index/quantise.h"

#include <math.h>
#include <stdbool.h>

float dp_quantise(const float *x, size_t n, int8_t *rounded)
{
    float largest = 0;
    bool finite = true;
    for (size_t j = 0; j < n; j++) {
        const float magnitude = fabsf(x[j]);
        largest = magnitude > largest ? magnitude : largest;
        finite &= isfinite(x[j]) != 0;
    }
    const float step = largest / 127.0f, inverse = step > 0 ? 1.0f / step : 0.0f;
    const bool usable = finite && isfinite(inverse);
    for (size_t j = 0; j < n; j++) rounded[j] = usable ? (int8_t)lrintf(x[j] * inverse) : 0;
    return !finite ? NAN : usable ? step : 0.0f;
}
