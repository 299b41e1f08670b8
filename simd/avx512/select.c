/* AVX-512 stage 1 and nearest centroid: estimated logits and masses of clusters, and the sums that selection bisects. */
#include "avx512.h"
#include "lanes.h"

#include "../rank.h"

static float cluster_logits(const float *x, const uint16_t *size, const uint16_t *spread, const uint16_t *limit, size_t n,
                            float base, float scale, float variance, float *out)
{
    const __m512 lowest = _mm512_set1_ps(-INFINITY), offset = _mm512_set1_ps(base), factor = _mm512_set1_ps(scale),
                 spread_factor = _mm512_set1_ps(variance), half = _mm512_set1_ps(0.5f);
    __m512 largest = lowest;
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __mmask16 real =
            _mm512_mask_cmp_ps_mask(mask, dp_load_bf16(mask, size + i), _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 score = _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(mask, x + i), offset);
        const __m512 sigma = _mm512_sqrt_ps(_mm512_mul_ps(spread_factor, dp_load_bf16(mask, spread + i)));
        const __m512 m = _mm512_min_ps(dp_load_bf16(mask, limit + i), sigma);
        const __m512 logit = _mm512_fmadd_ps(m, _mm512_fnmadd_ps(half, m, sigma), score);
        const __m512 kept = _mm512_mask_mov_ps(lowest, real, logit);
        _mm512_mask_storeu_ps(out + i, mask, kept);
        largest = _mm512_max_ps(kept, largest); /* the second operand where the first is NaN */
    }
    return _mm512_reduce_max_ps(largest);
}

static float cluster_mass(const float *x, const uint16_t *size, const uint16_t *spread, size_t n, float max,
                          float variance, float *mass, float *error)
{
    const __m512 origin = _mm512_set1_ps(max == -INFINITY ? 0 : max), factor = _mm512_set1_ps(2.0f * variance);
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __m512 s = dp_load_bf16(mask, size + i);
        const __mmask16 real = _mm512_mask_cmp_ps_mask(mask, s, _mm512_setzero_ps(), _CMP_GT_OQ);
        const __m512 y = dp_exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), origin));
        const __m512 m = _mm512_maskz_mul_ps(real, s, y);
        const __m512 growth = dp_bounded_expm1(_mm512_mul_ps(factor, dp_load_bf16(mask, spread + i)));
        /* the square of a tiny y would be denormal, which costs more than a hundred cycles; it counts for nothing */
        const __mmask16 counts = _mm512_mask_cmp_ps_mask(real, y, _mm512_set1_ps(0x1p-60f), _CMP_NLT_UQ);
        const __m512 square = _mm512_maskz_mul_ps(counts, m, m);
        _mm512_mask_storeu_ps(mass + i, mask, m);
        _mm512_mask_storeu_ps(error + i, mask,
                              _mm512_maskz_mul_ps(real, square, _mm512_min_ps(_mm512_mul_ps(_mm512_set1_ps(DP_WORST_ERROR), s), growth)));
        sum = _mm512_add_ps(sum, m);
    }
    return _mm512_reduce_add_ps(sum);
}

static void keep_clusters(const float *mass, const float *error, size_t n, float keep, float weight, float *joint,
                          uint8_t *flags)
{
    const __m512 bound = _mm512_set1_ps(keep), factor = _mm512_set1_ps(weight);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __mmask16 kept =
            _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, mass + i), bound, _CMP_NLT_UQ);
        const __m512 sum = _mm512_maskz_loadu_ps(mask, joint + i);
        _mm512_mask_storeu_ps(joint + i, mask, _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(mask, error + i), sum));
        const __m128i bits = _mm_maskz_loadu_epi8(mask, flags + i);
        _mm_mask_storeu_epi8(flags + i, kept, _mm_or_si128(bits, _mm_set1_epi8(1)));
    }
}

static size_t list_flagged(const uint8_t *flags, size_t n, uint8_t mask, uint8_t value, uint16_t *out)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t count = 0;
    for (size_t i = 0; i < n; i += 64) {
        const __mmask64 there = n - i < 64 ? ((__mmask64)1 << (n - i)) - 1 : ~(__mmask64)0;
        const __m512i bits = _mm512_and_si512(_mm512_maskz_loadu_epi8(there, flags + i), _mm512_set1_epi8((char)mask));
        __mmask64 listed = _mm512_mask_cmpeq_epi8_mask(there, bits, _mm512_set1_epi8((char)value));
        for (size_t first = i; listed; first += 16, listed >>= 16) {
            const __m512i numbers = _mm512_add_epi32(lane, _mm512_set1_epi32((int)first));
            _mm256_storeu_si256((__m256i *)(void *)(out + count),
                                _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32((__mmask16)listed, numbers)));
            count += (size_t)__builtin_popcount((__mmask16)listed);
        }
    }
    return count;
}

static void mean_weights(const float *mass, const uint16_t *index, size_t n, const float *unit, const float *part,
                         float *weight, float sums[2])
{
    __m512 all = _mm512_setzero_ps(), some = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __m512i at = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, index + i));
        const __m512 m = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, at, mass, sizeof *mass);
        all = _mm512_add_ps(all, m);
        some = _mm512_fmadd_ps(m, _mm512_maskz_loadu_ps(mask, part + i), some);
        _mm512_mask_storeu_ps(weight + i, mask, _mm512_mul_ps(m, _mm512_maskz_loadu_ps(mask, unit + i)));
    }
    sums[0] += _mm512_reduce_add_ps(all);
    sums[1] += _mm512_reduce_add_ps(some);
}

static float sum_at_least(const float *rank, const float *value, size_t n, float threshold)
{
    const __m512 bound = _mm512_set1_ps(threshold);
    __m512 sum[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++)
        sum[v] = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) {
            const __mmask16 kept = _mm512_cmp_ps_mask(_mm512_loadu_ps(rank + i + 16 * v), bound, _CMP_NLT_UQ);
            sum[v] = _mm512_mask_add_ps(sum[v], kept, sum[v], _mm512_loadu_ps(value + i + 16 * v));
        }
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __mmask16 kept = _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, rank + i), bound, _CMP_NLT_UQ);
        sum[0] = _mm512_add_ps(sum[0], _mm512_maskz_loadu_ps(kept, value + i));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

static size_t list_at_least(const float *rank, const float *value, size_t n, float threshold, float *out_rank,
                            float *out_value)
{
    const __m512 bound = _mm512_set1_ps(threshold);
    size_t count = 0, i = 0;
    for (; i + 16 <= n; i += 16) { /* whole stores: what they write too much is behind what was read */
        const __m512 r = _mm512_loadu_ps(rank + i), v = value ? _mm512_loadu_ps(value + i) : r;
        const __mmask16 kept = _mm512_cmp_ps_mask(r, bound, _CMP_NLT_UQ);
        _mm512_storeu_ps(out_rank + count, _mm512_maskz_compress_ps(kept, r));
        if (value) _mm512_storeu_ps(out_value + count, _mm512_maskz_compress_ps(kept, v));
        count += (size_t)__builtin_popcount(kept);
    }
    if (i == n) return count;
    const __mmask16 mask = dp_mask16(n - i);
    const __m512 r = _mm512_maskz_loadu_ps(mask, rank + i), v = value ? _mm512_maskz_loadu_ps(mask, value + i) : r;
    const __mmask16 kept = _mm512_mask_cmp_ps_mask(mask, r, bound, _CMP_NLT_UQ);
    _mm512_mask_storeu_ps(out_rank + count, mask, _mm512_maskz_compress_ps(kept, r));
    if (value) _mm512_mask_storeu_ps(out_value + count, mask, _mm512_maskz_compress_ps(kept, v));
    return count + (size_t)__builtin_popcount(kept);
}

static size_t nearest(const float *dot, const float *half_norm, size_t n, float *best)
{
    lanes found = start_lanes();
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __m512 x = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, dot + i), _mm512_maskz_loadu_ps(mask, half_norm + i));
        found = better_lanes(found, mask, x, i);
    }
    return best_lane(found, best);
}

void dp_avx512_init_select(dp_kernels *k)
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
}
