/* rope.c: see rope.h. */
#include "rope.h"

#include <math.h>
#include <string.h>

void rope_frequencies(size_t n_dims, double freq_base, double position_scale, const float *factors, double *frequencies)
{
    for (size_t i = 0; i < n_dims / 2; i++) {
        const double factor = factors ? (double)factors[i] : 1.0;
        frequencies[i] = position_scale * pow(freq_base, -2.0 * (double)i / (double)n_dims) / factor;
    }
}

void rope_table(uint64_t position, size_t n_pairs, const double *frequencies, float *table)
{
    for (size_t i = 0; i < n_pairs; i++) {
        double s, c;
        sincos((double)position * frequencies[i], &s, &c);
        table[2 * i] = (float)c;
        table[2 * i + 1] = (float)s;
    }
}

void rope_apply(const float *table, size_t n_pairs, size_t n_heads, size_t head_dim, const float *src, float *dst)
{
    for (size_t h = 0; h < n_heads; h++, src += head_dim, dst += head_dim) {
        for (size_t i = 0; i < n_pairs; i++) {
            const float c = table[2 * i], s = table[2 * i + 1];
            const float x0 = src[2 * i], x1 = src[2 * i + 1];
            dst[2 * i] = x0 * c - x1 * s;
            dst[2 * i + 1] = x0 * s + x1 * c;
        }
        if (dst != src)
            memcpy(dst + 2 * n_pairs, src + 2 * n_pairs, (head_dim - 2 * n_pairs) * sizeof(float));
    }
}
