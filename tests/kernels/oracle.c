/* The kernels' contracts in double precision. */
#include "oracle.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels.h"

typedef struct format {
    int fraction_bits, exponent_bits, bias;
} format;

static format format_of(dp_type type)
{
    return type == DP_F16 ? (format){10, 5, 15} : (format){7, 8, 127};
}

double oracle_element(const void *row, size_t i, dp_type type)
{
    if (type == DP_F32) {
        float x;
        memcpy(&x, (const char *)row + 4 * i, sizeof x);
        return x;
    }
    uint16_t bits;
    memcpy(&bits, (const char *)row + 2 * i, sizeof bits);
    const format f = format_of(type);
    const int exponent = bits >> f.fraction_bits & ((1 << f.exponent_bits) - 1);
    const int fraction = bits & ((1 << f.fraction_bits) - 1);
    double x;
    if (exponent == (1 << f.exponent_bits) - 1)
        x = fraction ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        x = ldexp(fraction, 1 - f.bias - f.fraction_bits);
    else
        x = ldexp((1 << f.fraction_bits) + fraction, exponent - f.bias - f.fraction_bits);
    return bits >> 15 ? -x : x;
}

uint16_t oracle_round(float x, dp_type type)
{
    const format f = format_of(type);
    const uint16_t sign = signbit(x) ? 0x8000 : 0, infinity = (uint16_t)(((1 << f.exponent_bits) - 1) << f.fraction_bits);
    const double magnitude = fabs((double)x);
    if (isinf(magnitude))
        return sign | infinity;
    const int lowest = 1 - f.bias; /* exponent of the smallest normal number, and of denormals */
    int exponent = lowest;
    if (magnitude >= ldexp(1, lowest)) {
        frexp(magnitude, &exponent);
        exponent--;
    }
    /* In units of the last place: below 2^(fraction_bits + 1), and rounding may carry into the exponent. */
    const double units = nearbyint(ldexp(magnitude, f.fraction_bits - exponent));
    const double encoded = units + ldexp(exponent - lowest, f.fraction_bits);
    return sign | (encoded >= infinity ? infinity : (uint16_t)encoded);
}

void oracle_store(void *row, size_t i, float x, dp_type type)
{
    if (type == DP_F32) {
        memcpy((char *)row + 4 * i, &x, sizeof x);
        return;
    }
    const uint16_t bits = isnan(x) ? 0x7fff : oracle_round(x, type);
    memcpy((char *)row + 2 * i, &bits, sizeof bits);
}

size_t oracle_row_bytes(size_t d, dp_type type)
{
    return type == DP_INT8 ? d + 4 : d * (type == DP_F32 ? 4 : 2);
}

double oracle_row_element(const void *row, size_t j, size_t d, dp_type type)
{
    if (type != DP_INT8)
        return oracle_element(row, j, type);
    float step;
    memcpy(&step, (const char *)row + d, sizeof step);
    return (double)step * ((const signed char *)row)[j];
}

void oracle_store_row(void *row, const float *x, size_t d, dp_type type)
{
    float largest = 0;
    for (size_t j = 0; j < d; j++)
        largest = isfinite(x[j]) && !isnan(largest) ? fmaxf(largest, fabsf(x[j])) : NAN;
    const float step = largest / 127;
    for (size_t j = 0; j < d; j++)
        if (type != DP_INT8)
            oracle_store(row, j, x[j], type);
        else
            ((signed char *)row)[j] = (signed char)(step > 0 ? lrint(fmin(fmax((double)x[j] / step, -128), 127)) : 0);
    if (type == DP_INT8)
        memcpy((char *)row + d, &step, sizeof step);
}

oracle_sum oracle_dot(const float *x, size_t x_step, const void *row, size_t row_step, size_t n, dp_type type)
{
    oracle_sum sum = {0, 0};
    for (size_t j = 0; j < n; j++) {
        const double term = x[j * x_step] * oracle_element(row, j * row_step, type);
        sum.value += term;
        sum.magnitude += fabs(term);
    }
    return sum;
}

double oracle_exp(float x, float max)
{
    const float difference = x - (max == -INFINITY ? 0 : max);
    return exp(difference);
}

double oracle_soft_cap(float x, float add, float cap)
{
    return (double)cap * tanh(((double)x + add) / cap);
}

double oracle_cluster_logit(float x, float spread, float limit, float base, float scale, float variance)
{
    const double sigma = sqrt((double)variance * spread);
    const double growth = sigma <= limit ? sigma * sigma / 2 : limit * sigma - (double)limit * limit / 2;
    return base + (double)scale * x + growth;
}

oracle_cluster oracle_cluster_mass(float x, float size, float spread, float max, float variance)
{
    oracle_cluster c = {0, 0, 0, 0};
    if (!(size > 0))
        return c;
    c.y = oracle_exp(x, max);
    c.mass = size * c.y;
    c.growth = expm1(2 * (double)variance * spread);
    if (c.growth > DP_WORST_ERROR * (double)size)
        c.growth = DP_WORST_ERROR * (double)size;
    c.error = c.mass * c.mass * c.growth;
    return c;
}
