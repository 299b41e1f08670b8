/* Scalar softmax: the maximum, and exponentials with their sum. */
#include "scalar.h"

#include <math.h>

static float max_of(const float *x, size_t n)
{
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++)
        if (x[i] > largest)
            largest = x[i];
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

void dp_scalar_init_softmax(dp_kernels *k)
{
    k->max = max_of;
    k->exp_sum = exp_sum;
}
