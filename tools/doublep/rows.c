/* rows.c: see rows.h. */
#include "rows.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8 }; /* sums side by side, so that a compiler may use vectors */

static double sum_of_squares(const float *x, size_t n)
{
    double lanes[LANES] = {0}, sum = 0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++)
            lanes[j] += (double)x[i + j] * (double)x[i + j];
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    for (size_t j = 0; j < LANES; j++)
        sum += lanes[j];
    return sum;
}

/* Largest |x| for exp_bounded. */
static const float exp_bound = 87.0f;

/* exp(x) within 1 ulp for |x| <= exp_bound. Without branches or calls, which keep a compiler from vectors: x = n ln 2 + r,
 * then a polynomial in r times 2^n. */
static inline float exp_bounded(float x)
{
    static const float round_bias = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    const float biased = x * 1.44269504f + round_bias;
    const float n = biased - round_bias;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    const float r2 = r * r;
    /* Taylor's coefficients do: |r| <= ln 2 / 2, and the first term left out, r^8 / 8!, is below 6e-9. */
    const float odd = 1.0f / 6 + r2 * (1.0f / 120 + r2 * (1.0f / 5040));
    const float even = 0.5f + r2 * (1.0f / 24 + r2 * (1.0f / 720));
    const float p = 1.0f + (r + r2 * (even + r * odd));
    int32_t bits;
    memcpy(&bits, &biased, sizeof(bits));
    bits = (int32_t)((uint32_t)bits << 23) + 0x3f800000; /* the bias shifts out: n + 127 in the exponent */
    float power;
    memcpy(&power, &bits, sizeof(power));
    return p * power;
}

void rows_norm(size_t n_rows, size_t width, const float *weight, float epsilon, const float *x, float *y)
{
#pragma omp parallel for if (n_rows > ROWS_SERIAL)
    for (size_t r = 0; r < n_rows; r++) {
        const float *const row = x + r * width;
        const double sum = sum_of_squares(row, width);
        const float scale = (float)(1 / sqrt(sum / (double)width + (double)epsilon));
        for (size_t i = 0; i < width; i++)
            y[r * width + i] = row[i] * scale * weight[i];
    }
}

void rows_add(size_t n_rows, size_t width, const float *delta, float *x)
{
#pragma omp parallel for if (n_rows > ROWS_SERIAL)
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = r * width; i < (r + 1) * width; i++)
            x[i] += delta[i];
}

void rows_swiglu(size_t n_rows, size_t width, const float *gate_up, float *y)
{
#pragma omp parallel for if (n_rows > ROWS_SERIAL)
    for (size_t r = 0; r < n_rows; r++) {
        const float *const gate = gate_up + r * 2 * width, *const up = gate + width;
        float *const out = y + r * width;
        /* Bounds in a loop of their own: merged into the next, compilers make branches of them. A NaN becomes a number
         * here, but shows in the quotient. */
        for (size_t i = 0; i < width; i++) {
            const float x = -gate[i] < exp_bound ? -gate[i] : exp_bound;
            out[i] = x > -exp_bound ? x : -exp_bound;
        }
        for (size_t i = 0; i < width; i++)
            out[i] = gate[i] / (1 + exp_bounded(out[i])) * up[i];
    }
}
