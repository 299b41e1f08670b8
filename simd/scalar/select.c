/* Scalar stage 1 and nearest centroid: estimated logits and masses of clusters, and the sums that selection bisects. */
#include "scalar.h"

#include "../rank.h"

#include <math.h>
#include <string.h>

/* min(x, bound) that lets a NaN through. */
static inline float capped(float x, float bound)
{
    return x > bound ? bound : x;
}

static float cluster_logits(const float *x, const uint16_t *size, const uint16_t *spread, const uint16_t *limit, size_t n,
                            float base, float scale, float variance, float *out)
{
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        const float sigma = sqrtf(variance * dp_f32_from_bf16(spread[i]));
        const float m = capped(sigma, dp_f32_from_bf16(limit[i]));
        out[i] = dp_f32_from_bf16(size[i]) > 0 ? base + scale * x[i] + m * (sigma - 0.5f * m) : -INFINITY;
        if (out[i] > largest)
            largest = out[i];
    }
    return largest;
}

static float cluster_mass(const float *x, const uint16_t *size, const uint16_t *spread, size_t n, float max,
                          float variance, float *mass, float *error)
{
    const float origin = max == -INFINITY ? 0 : max;
    float part[4] = {0};
    for (size_t i = 0; i < n; i++) {
        const float s = dp_f32_from_bf16(size[i]);
        if (!(s > 0)) {
            mass[i] = error[i] = 0;
            continue;
        }
        mass[i] = s * expf(x[i] - origin);
        error[i] = mass[i] * mass[i] * capped(expm1f(2.0f * variance * dp_f32_from_bf16(spread[i])), DP_WORST_ERROR * s);
        part[i % 4] += mass[i];
    }
    return (part[0] + part[2]) + (part[1] + part[3]);
}

static void keep_clusters(const float *mass, const float *error, size_t n, float keep, float weight, float *joint,
                          uint8_t *flags)
{
    for (size_t i = 0; i < n; i++) {
        flags[i] |= !(mass[i] < keep);
        joint[i] += weight * error[i];
    }
}

/* Whether (flags[i] & mask) == value for any of eight. */
static int any_of_8(const uint8_t *flags, uint8_t mask, uint8_t value)
{
    const uint64_t ones = 0x0101010101010101u;
    uint64_t eight;
    memcpy(&eight, flags, sizeof eight);
    const uint64_t difference = (eight & ones * mask) ^ ones * value;
    return ((difference - ones) & ~difference & ones << 7) != 0; /* a byte of it is 0 */
}

static size_t list_flagged(const uint8_t *flags, size_t n, uint8_t mask, uint8_t value, uint16_t *out)
{
    size_t count = 0;
    for (size_t i = 0; i < n;) {
        const size_t end = n - i < 8 ? n : i + 8;
        if (end - i == 8 && !any_of_8(flags + i, mask, value)) i = end; /* as it mostly is */
        for (; i < end; i++) {
            out[count] = (uint16_t)i;
            count += (flags[i] & mask) == value;
        }
    }
    return count;
}

static void mean_weights(const float *mass, const uint16_t *index, size_t n, const float *unit, const float *part,
                         float *weight, float sums[2])
{
    float all[4] = {0}, some[4] = {0};
    for (size_t i = 0; i < n; i++) {
        const float m = mass[index[i]];
        all[i % 4] += m;
        some[i % 4] += m * part[i];
        weight[i] = m * unit[i];
    }
    sums[0] += (all[0] + all[2]) + (all[1] + all[3]);
    sums[1] += (some[0] + some[2]) + (some[1] + some[3]);
}

static float sum_at_least(const float *rank, const float *value, size_t n, float threshold)
{
    float part[4] = {0};
    for (size_t i = 0; i < n; i++)
        part[i % 4] += rank[i] < threshold ? 0 : value[i];
    return (part[0] + part[2]) + (part[1] + part[3]);
}

static size_t list_at_least(const float *rank, const float *value, size_t n, float threshold, float *out_rank,
                            float *out_value)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        const float r = rank[i];
        out_rank[count] = r;
        if (value) out_value[count] = value[i];
        count += !(r < threshold);
    }
    return count;
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
    k->keep_clusters = keep_clusters;
    dp_init_rank(k);
    k->list_flagged = list_flagged;
    k->mean_weights = mean_weights;
    k->sum_at_least = sum_at_least;
    k->list_at_least = list_at_least;
    k->nearest = nearest;
    k->nearest_in_bytes = NULL;
}
