/* NEON stage 1 and nearest centroid: estimated logits and masses of clusters, and the sums that selection bisects. Lanes
 * past the end are loaded as 0: a size of 0, padding. */
#include "lanes.h"

#include "../rank.h"

static float cluster_logits(const float *x, const uint16_t *size, const uint16_t *spread, const uint16_t *limit, size_t n,
                            float base, float scale, float variance, float *out)
{
    const float32x4_t lowest = vdupq_n_f32(-INFINITY), offset = vdupq_n_f32(base), half = vdupq_n_f32(0.5f);
    float32x4_t largest = lowest;
    for (size_t i = 0; i < n; i += 4) {
        const size_t left = n - i;
        const uint32x4_t real = vcgtq_f32(dp_load_first_bf16(size + i, left), vdupq_n_f32(0));
        const float32x4_t score = vfmaq_n_f32(offset, dp_load_first(x + i, left), scale);
        const float32x4_t sigma = vsqrtq_f32(vmulq_n_f32(dp_load_first_bf16(spread + i, left), variance));
        const float32x4_t m = vminq_f32(dp_load_first_bf16(limit + i, left), sigma);
        const float32x4_t kept = vbslq_f32(real, vfmaq_f32(score, m, vfmsq_f32(sigma, half, m)), lowest);
        dp_store_first(out + i, left, kept);
        largest = dp_larger(largest, kept);
    }
    return vmaxvq_f32(largest);
}

static float cluster_mass(const float *x, const uint16_t *size, const uint16_t *spread, size_t n, float max,
                          float variance, float *mass, float *error)
{
    const float32x4_t origin = vdupq_n_f32(max == -INFINITY ? 0 : max);
    float32x4_t sum = vdupq_n_f32(0);
    for (size_t i = 0; i < n; i += 4) {
        const size_t left = n - i;
        const float32x4_t s = dp_load_first_bf16(size + i, left);
        const uint32x4_t real = vcgtq_f32(s, vdupq_n_f32(0));
        const float32x4_t y = dp_exp(vsubq_f32(dp_load_first(x + i, left), origin));
        const float32x4_t m = dp_keep(real, vmulq_f32(s, y));
        const float32x4_t growth = dp_bounded_expm1(vmulq_n_f32(dp_load_first_bf16(spread + i, left), 2.0f * variance));
        /* the square of a tiny y would be denormal, which is slow on some processors; it counts for nothing */
        const float32x4_t counted = dp_keep(vmvnq_u32(vcltq_f32(y, vdupq_n_f32(0x1p-60f))), m);
        const float32x4_t e = vmulq_f32(vmulq_f32(counted, counted), vminq_f32(vmulq_n_f32(s, DP_WORST_ERROR), growth));
        dp_store_first(mass + i, left, m);
        dp_store_first(error + i, left, dp_keep(real, e));
        sum = vaddq_f32(sum, m);
    }
    return dp_sum_lanes(sum);
}

static void keep_clusters(const float *mass, const float *error, size_t n, float keep, float weight, float *joint,
                          uint8_t *flags)
{
    const float32x4_t bound = vdupq_n_f32(keep);
    for (size_t i = 0; i < n; i += 8) {
        uint16x4_t dropped[2];
        DP_UNROLL
        for (size_t v = 0; v < 2; v++) {
            const size_t first = i + 4 * v, left = n > first ? n - first : 0;
            const uint32x4_t below = vcltq_f32(dp_load_first(mass + first, left), bound);
            const float32x4_t old = dp_load_first(joint + first, left);
            const float32x4_t more = vfmaq_n_f32(old, dp_load_first(error + first, left), weight);
            dp_store_first(joint + first, left, more);
            dropped[v] = vmovn_u32(below);
        }
        const uint8x8_t kept = vbic_u8(vdup_n_u8(1), vmovn_u16(vcombine_u16(dropped[0], dropped[1])));
        if (n - i >= 8) {
            vst1_u8(flags + i, vorr_u8(vld1_u8(flags + i), kept));
        } else {
            uint8_t bits[8];
            vst1_u8(bits, kept);
            for (size_t j = 0; i + j < n; j++)
                flags[i + j] |= bits[j];
        }
    }
}

/* x where !(rank < bound), 0 elsewhere. */
DP_INLINE float32x4_t at_least(float32x4_t rank, float32x4_t bound, float32x4_t x)
{
    return dp_keep(vmvnq_u32(vcltq_f32(rank, bound)), x);
}

static float sum_at_least(const float *rank, const float *value, size_t n, float threshold)
{
    const float32x4_t bound = vdupq_n_f32(threshold);
    float32x4_t sum[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++)
        sum[v] = vdupq_n_f32(0);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++)
            sum[v] = vaddq_f32(sum[v], at_least(vld1q_f32(rank + i + 4 * v), bound, vld1q_f32(value + i + 4 * v)));
    }
    for (; i < n; i += 4) /* lanes past the end add a 0 */
        sum[0] = vaddq_f32(sum[0], at_least(dp_load_first(rank + i, n - i), bound, dp_load_first(value + i, n - i)));
    return dp_sum_lanes(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
}

/* Byte numbers that move those of four lanes that a mask's bits name to the front. */
#define LANE(l) 4 * (l), 4 * (l) + 1, 4 * (l) + 2, 4 * (l) + 3
static const uint8_t to_front[16][16] = {
    {0},
    {LANE(0)},
    {LANE(1)},
    {LANE(0), LANE(1)},
    {LANE(2)},
    {LANE(0), LANE(2)},
    {LANE(1), LANE(2)},
    {LANE(0), LANE(1), LANE(2)},
    {LANE(3)},
    {LANE(0), LANE(3)},
    {LANE(1), LANE(3)},
    {LANE(0), LANE(1), LANE(3)},
    {LANE(2), LANE(3)},
    {LANE(0), LANE(2), LANE(3)},
    {LANE(1), LANE(2), LANE(3)},
    {LANE(0), LANE(1), LANE(2), LANE(3)},
};
#undef LANE

DP_INLINE void store_front(float *out, float32x4_t x, uint8x16_t order)
{
    vst1q_f32(out, vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(x), order)));
}

static size_t list_at_least(const float *rank, const float *value, size_t n, float threshold, float *out_rank,
                            float *out_value)
{
    static const uint32_t bits[4] = {1, 2, 4, 8};
    static const uint8_t counts[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
    const float32x4_t bound = vdupq_n_f32(threshold);
    size_t count = 0, i = 0;
    for (; i + 4 <= n; i += 4) { /* what is stored ends at i + 4 at most, and that was loaded */
        const float32x4_t ranks = vld1q_f32(rank + i), values = value ? vld1q_f32(value + i) : ranks;
        const uint32_t mask = vaddvq_u32(vbicq_u32(vld1q_u32(bits), vcltq_f32(ranks, bound)));
        const uint8x16_t order = vld1q_u8(to_front[mask]);
        store_front(out_rank + count, ranks, order);
        if (value) store_front(out_value + count, values, order);
        count += counts[mask];
    }
    for (; i < n; i++) {
        if (rank[i] < threshold) continue;
        const float r = rank[i], v = value ? value[i] : 0;
        out_rank[count] = r;
        if (value) out_value[count] = v;
        count++;
    }
    return count;
}

static size_t nearest(const float *dot, const float *half_norm, size_t n, float *best)
{
    lanes found[2] = {start_lanes(), start_lanes()};
    for (size_t i = 0; i < n; i += 8) {
        DP_UNROLL
        for (size_t v = 0; v < 2; v++) {
            const size_t first = i + 4 * v, left = n > first ? n - first : 0;
            const float32x4_t difference =
                vsubq_f32(dp_load_first(dot + first, left), dp_load_first(half_norm + first, left));
            found[v] = better_lanes(found[v], left, difference, first);
        }
    }
    return best_lane(merge_lanes(found[0], found[1]), best);
}

void dp_neon_init_select(dp_kernels *k)
{
    k->cluster_logits = cluster_logits;
    k->cluster_mass = cluster_mass;
    k->keep_clusters = keep_clusters;
    dp_init_rank(k);
    k->sum_at_least = sum_at_least;
    k->list_at_least = list_at_least;
    k->nearest = nearest;
}
