/* AVX2 stage 1 and nearest centroid: estimated logits and masses of clusters, and the sums that selection bisects. Lanes
 * past the end are loaded as 0: a size of 0, padding. */
#include "avx2.h"

#include "../rank.h"


static float cluster_logits(const float *x, const uint16_t *size, const uint16_t *spread, const uint16_t *limit, size_t n,
                            float base, float scale, float variance, float *out)
{
    const __m256 lowest = _mm256_set1_ps(-INFINITY), offset = _mm256_set1_ps(base), factor = _mm256_set1_ps(scale),
                 spread_factor = _mm256_set1_ps(variance), half = _mm256_set1_ps(0.5f);
    __m256 largest = lowest;
    for (size_t i = 0; i < n; i += 8) {
        const size_t left = n - i;
        const __m256 real = _mm256_cmp_ps(dp_load_first_bf16(size + i, left), _mm256_setzero_ps(), _CMP_GT_OQ);
        const __m256 score = _mm256_fmadd_ps(factor, dp_load_first(x + i, left), offset);
        const __m256 sigma = _mm256_sqrt_ps(_mm256_mul_ps(spread_factor, dp_load_first_bf16(spread + i, left)));
        const __m256 m = _mm256_min_ps(dp_load_first_bf16(limit + i, left), sigma);
        const __m256 logit = _mm256_fmadd_ps(m, _mm256_fnmadd_ps(half, m, sigma), score);
        const __m256 kept = _mm256_blendv_ps(lowest, logit, real);
        dp_store_first(out + i, left, kept);
        largest = _mm256_max_ps(kept, largest); /* the second operand where the first is NaN */
    }
    return dp_max_lane(largest);
}

static float cluster_mass(const float *x, const uint16_t *size, const uint16_t *spread, size_t n, float max,
                          float variance, float *mass, float *error)
{
    const __m256 origin = _mm256_set1_ps(max == -INFINITY ? 0 : max), factor = _mm256_set1_ps(2.0f * variance);
    __m256 sum = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 8) {
        const size_t left = n - i;
        const __m256 s = dp_load_first_bf16(size + i, left);
        const __m256 real = _mm256_cmp_ps(s, _mm256_setzero_ps(), _CMP_GT_OQ);
        const __m256 y = dp_exp(_mm256_sub_ps(dp_load_first(x + i, left), origin));
        const __m256 m = _mm256_and_ps(real, _mm256_mul_ps(s, y));
        const __m256 growth = dp_bounded_expm1(_mm256_mul_ps(factor, dp_load_first_bf16(spread + i, left)));
        /* the square of a tiny y would be denormal, which costs more than a hundred cycles; it counts for nothing */
        const __m256 counts = _mm256_and_ps(real, _mm256_cmp_ps(y, _mm256_set1_ps(0x1p-60f), _CMP_NLT_UQ));
        const __m256 counted = _mm256_and_ps(counts, m);
        const __m256 e = _mm256_mul_ps(_mm256_mul_ps(counted, counted),
                                       _mm256_min_ps(_mm256_mul_ps(_mm256_set1_ps(DP_WORST_ERROR), s), growth));
        dp_store_first(mass + i, left, m);
        dp_store_first(error + i, left, _mm256_and_ps(real, e));
        sum = _mm256_add_ps(sum, m);
    }
    return dp_sum_lanes(sum);
}

static void keep_clusters(const float *mass, const float *error, size_t n, float keep, float weight, float *joint,
                          uint8_t *flags)
{
    const __m256 bound = _mm256_set1_ps(keep), factor = _mm256_set1_ps(weight);
    for (size_t i = 0; i < n; i += 8) {
        const size_t left = n - i;
        const __m256 kept = _mm256_cmp_ps(dp_load_first(mass + i, left), bound, _CMP_NLT_UQ);
        const __m256 old = dp_load_first(joint + i, left);
        const __m256 sum = _mm256_fmadd_ps(factor, dp_load_first(error + i, left), old);
        dp_store_first(joint + i, left, sum);
        const unsigned bits = (unsigned)_mm256_movemask_ps(kept);
        for (size_t j = 0; j < 8 && j < left; j++)
            flags[i + j] |= (uint8_t)(bits >> j & 1);
    }
}

static float sum_at_least(const float *rank, const float *value, size_t n, float threshold)
{
    const __m256 bound = _mm256_set1_ps(threshold);
    __m256 sum[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++)
        sum[v] = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) {
            const __m256 kept = _mm256_cmp_ps(_mm256_loadu_ps(rank + i + 8 * v), bound, _CMP_NLT_UQ);
            sum[v] = _mm256_add_ps(sum[v], _mm256_and_ps(kept, _mm256_loadu_ps(value + i + 8 * v)));
        }
    }
    for (; i < n; i += 8) { /* lanes past the end add a 0 */
        const __m256 kept = _mm256_cmp_ps(dp_load_first(rank + i, n - i), bound, _CMP_NLT_UQ);
        sum[0] = _mm256_add_ps(sum[0], _mm256_and_ps(kept, dp_load_first(value + i, n - i)));
    }
    return dp_sum_lanes(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

static size_t nearest(const float *dot, const float *half_norm, size_t n, float *best)
{
    const __m256i step = _mm256_set1_epi32(8);
    __m256i position = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), winner = _mm256_setzero_si256();
    __m256 largest = _mm256_set1_ps(-INFINITY);
    for (size_t i = 0; i < n; i += 8) {
        const size_t left = n - i;
        const __m256 difference = _mm256_sub_ps(dp_load_first(dot + i, left), dp_load_first(half_norm + i, left));
        __m256 better = _mm256_cmp_ps(difference, largest, _CMP_GT_OQ);
        if (left < 8)
            better = _mm256_and_ps(better, _mm256_castsi256_ps(dp_mask8(left)));
        largest = _mm256_blendv_ps(largest, difference, better);
        winner = _mm256_blendv_epi8(winner, position, _mm256_castps_si256(better));
        position = _mm256_add_epi32(position, step);
    }
    float lane_best[8];
    uint32_t lane_winner[8];
    _mm256_storeu_ps(lane_best, largest);
    _mm256_storeu_si256((__m256i *)(void *)lane_winner, winner);
    size_t lane = 0;
    for (size_t i = 1; i < 8; i++)
        if (lane_best[i] > lane_best[lane] ||
            (lane_best[i] == lane_best[lane] && lane_winner[i] < lane_winner[lane]))
            lane = i;
    *best = lane_best[lane];
    return lane_winner[lane];
}

void dp_avx2_init_select(dp_kernels *k)
{
    k->cluster_logits = cluster_logits;
    k->cluster_mass = cluster_mass;
    k->keep_clusters = keep_clusters;
    dp_init_rank(k);
    k->sum_at_least = sum_at_least;
    k->nearest = nearest;
}
