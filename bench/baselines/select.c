/* select.c: see select.h. */
#include "select.h"

#include <math.h>
#include <string.h>

#include "simd/half.h"

/* Hoare's selection: the value that has n_larger values before it in descending order. */
static float nth_largest(float *x, size_t n, size_t n_larger)
{
    size_t first = 0, last = n - 1;
    while (first < last) {
        const float pivot = x[first + (last - first) / 2];
        size_t i = first, j = last;
        for (;;) {
            while (x[i] > pivot)
                i++;
            while (x[j] < pivot)
                j--;
            if (i >= j)
                break;
            const float swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
        const size_t middle = i == j ? i : j; /* first .. middle are >= pivot, the rest <= pivot */
        if (n_larger <= middle)
            last = middle;
        else
            first = middle + 1;
    }
    return x[n_larger];
}

void select_largest(const float *x, size_t n, size_t n_wanted, float *work, uint8_t *chosen)
{
    if (n_wanted == 0)
        return;
    if (n_wanted >= n) {
        memset(chosen, 1, n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        work[i] = isnan(x[i]) ? INFINITY : x[i]; /* what cannot be judged is read */
    const float limit = nth_largest(work, n, n_wanted - 1);
    size_t left = n_wanted;
    for (size_t i = 0; i < n; i++)
        if (!(x[i] <= limit)) {
            chosen[i] = 1;
            left -= left > 0;
        }
    for (size_t i = 0; i < n && left > 0; i++)
        if (x[i] == limit) {
            chosen[i] = 1;
            left--;
        }
}

float select_threshold(const dp_kernels *kernels, const float *x, size_t n, double need)
{
    if (need <= 0)
        return INFINITY;
    /* Positive floats are ordered as their bits are. */
    uint32_t low = 0, high = dp_bits_of(kernels->max(x, n));
    if (high > 0x7f800000u || (double)kernels->sum_at_least(x, x, n, 0) < need)
        return 0;
    if ((double)kernels->sum_at_least(x, x, n, dp_float_of(high)) >= need)
        return dp_float_of(high);
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if ((double)kernels->sum_at_least(x, x, n, dp_float_of(middle)) >= need)
            low = middle;
        else
            high = middle;
    }
    return dp_float_of(low);
}

size_t select_count(float share, size_t n)
{
    const size_t count = (size_t)lround((double)share * (double)n);
    return count < 1 ? (n > 0) : count < n ? count : n;
}
