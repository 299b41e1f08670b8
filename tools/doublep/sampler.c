/* sampler.c: see sampler.h. */
#include "sampler.h"

#include <math.h>

/* SplitMix64 (Steele, Lea, Flood 2014): a counter through a 64-bit finaliser. The upper 53 bits make a double in [0, 1). */
static double next_uniform(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

int32_t sampler_next(sampler *s, const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(logits[i]))
            return -1;
        if (logits[i] > logits[best])
            best = i;
    }
    if (n == 0 || !isfinite(logits[best]))
        return -1;
    if (s->temperature <= 0)
        return (int32_t)best;

    const double max = (double)logits[best];
    double total = 0;
    for (size_t i = 0; i < n; i++)
        total += exp(((double)logits[i] - max) / s->temperature);
    double left = next_uniform(&s->state) * total;
    for (size_t i = 0; i < n; i++) {
        left -= exp(((double)logits[i] - max) / s->temperature);
        if (left < 0)
            return (int32_t)i;
    }
    return (int32_t)best; /* rounding left a crumb of the total over */
}
