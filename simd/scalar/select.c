/* Scalar stage 1 and nearest centroid: estimated logits and masses of clusters, and the sums that selection bisects. */
#include "scalar.h"

#include <float.h>
#include <math.h>

/* min(x, bound) that lets a NaN through. */
static inline float capped(float x, float bound)
{
    return x > bound ? bound : x;
}

static float cluster_logits(float *x, const float *size, const float *spread, size_t n, float base, float scale,
                            float half)
{
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        x[i] = size[i] > 0 ? base + scale * x[i] + half * spread[i] : -INFINITY;
        if (x[i] > largest)
            largest = x[i];
    }
    return largest;
}

static void cluster_mass(const float *x, const float *size, const float *spread, size_t n, float max, float variance,
                         float *mass, float *error, float *rank, float sums[2])
{
    const float origin = max == -INFINITY ? 0 : max;
    float mass_part[4] = {0}, error_part[4] = {0};
    for (size_t i = 0; i < n; i++) {
        if (!(size[i] > 0)) {
            mass[i] = error[i] = rank[i] = 0;
            continue;
        }
        const float y = expf(x[i] - origin);
        mass[i] = size[i] * y;
        rank[i] = capped(mass[i] * y * capped(expm1f(variance * spread[i]), 1e30f), FLT_MAX);
        error[i] = capped(size[i] * rank[i], FLT_MAX);
        mass_part[i % 4] += mass[i];
        error_part[i % 4] += error[i];
    }
    sums[0] = (mass_part[0] + mass_part[2]) + (mass_part[1] + mass_part[3]);
    sums[1] = (error_part[0] + error_part[2]) + (error_part[1] + error_part[3]);
}

static float sum_at_least(const float *rank, const float *value, size_t n, float threshold)
{
    float part[4] = {0};
    for (size_t i = 0; i < n; i++)
        part[i % 4] += rank[i] < threshold ? 0 : value[i];
    return (part[0] + part[2]) + (part[1] + part[3]);
}

static size_t nearest(const float *dot, const float *half_norm, size_t n, float *best)
{
    size_t winner = 0;
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        const float difference = dot[i] - half_norm[i];
        if (difference > largest) {
            largest = difference;
            winner = i;
        }
    }
    *best = largest;
    return winner;
}

void dp_scalar_init_select(dp_kernels *k)
{
    k->cluster_logits = cluster_logits;
    k->cluster_mass = cluster_mass;
    k->sum_at_least = sum_at_least;
    k->nearest = nearest;
}
