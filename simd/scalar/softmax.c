/* Scalar softmax: the maximum, exponentials with their sum, which tokens have much of it, and soft caps. */
#include "scalar.h"

#include <math.h>

static float max_of(const float *x, size_t n)
{
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++)
        if (x[i] > largest) largest = x[i];
    return largest;
}

static float exp_sum(float *x, size_t n, float max)
{
    const float origin = max == -INFINITY ? 0 : max;
    float part[4] = {0};
    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - origin);
        part[i % 4] += x[i];
    }
    return (part[0] + part[2]) + (part[1] + part[3]);
}

static void split_masses(float *x, size_t x_stride, size_t heads, size_t n, const float *max, const float *limit,
                         uint8_t *wanted, float *left)
{
    for (size_t i = 0; i < n; i++) wanted[i] = 0;
    for (size_t h = 0; h < heads; h++)
        for (size_t i = 0; i < n; i++) {
            const float y = x[h * x_stride + i] = expf(x[h * x_stride + i] - max[h]);
            wanted[i] |= !(y <= limit[h]);
        }
    for (size_t h = 0; h < heads; h++) {
        float part[4] = {0};
        for (size_t i = 0; i < n; i++) part[i % 4] += wanted[i] ? 0 : x[h * x_stride + i];
        left[h] += (part[0] + part[2]) + (part[1] + part[3]);
    }
}

static void soft_cap(float *x, size_t n, float add, float cap)
{
    for (size_t i = 0; i < n; i++) x[i] = cap * tanhf((x[i] + add) / cap);
}

void dp_scalar_init_softmax(dp_kernels *k)
{
    k->max = max_of;
    k->exp_sum = exp_sum;
    k->split_masses = split_masses;
    k->soft_cap = soft_cap;
}
