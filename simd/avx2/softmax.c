/* AVX2 softmax: the maximum, exponentials with their sum, which tokens have much of it, and soft caps. */
#include <string.h>

#include "avx2.h"

static float max_of(const float *x, size_t n)
{
    const __m256 lowest = _mm256_set1_ps(-INFINITY);
    __m256 largest[4] = {lowest, lowest, lowest, lowest};
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) /* max(a, b) is b where a is NaN: NaN are passed over */
            largest[v] = _mm256_max_ps(_mm256_loadu_ps(x + i + 8 * v), largest[v]);
    }
    for (; i < n; i += 8) {
        const __m256 present = _mm256_castsi256_ps(dp_mask8(n - i));
        const __m256 next = _mm256_blendv_ps(lowest, dp_load_first(x + i, n - i), present);
        largest[0] = _mm256_max_ps(next, largest[0]);
    }
    return dp_max_lane(_mm256_max_ps(_mm256_max_ps(largest[0], largest[1]), _mm256_max_ps(largest[2], largest[3])));
}

static float exp_sum(float *x, size_t n, float max)
{
    const __m256 origin = _mm256_set1_ps(max == -INFINITY ? 0 : max);
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        DP_UNROLL
        for (size_t v = 0; v < 2; v++) {
            const __m256 y = dp_exp(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * v), origin));
            _mm256_storeu_ps(x + i + 8 * v, y);
            sum[v] = _mm256_add_ps(sum[v], y);
        }
    }
    for (; i < n; i += 8) {
        const __m256 y = dp_exp(_mm256_sub_ps(dp_load_first(x + i, n - i), origin));
        dp_store_first(x + i, n - i, y);
        sum[0] = _mm256_add_ps(sum[0], _mm256_and_ps(y, _mm256_castsi256_ps(dp_mask8(n - i))));
    }
    return dp_sum_lanes(_mm256_add_ps(sum[0], sum[1]));
}

static void split_masses(float *x, size_t x_stride, size_t heads, size_t n, const float *max, const float *limit,
                         uint8_t *wanted, float *left)
{
    for (size_t i = 0; i < n; i += 8) {
        __m256 above = _mm256_setzero_ps();
        for (size_t h = 0; h < heads; h++) {
            float *const at = x + h * x_stride + i;
            const __m256 y = dp_exp(_mm256_sub_ps(dp_load_first(at, n - i), _mm256_set1_ps(max[h])));
            dp_store_first(at, n - i, y);
            above = _mm256_or_ps(above, _mm256_cmp_ps(y, _mm256_set1_ps(limit[h]), _CMP_NLE_UQ));
        }
        const int bits = _mm256_movemask_ps(above);
        for (size_t j = 0; j < 8 && i + j < n; j++) wanted[i + j] = (uint8_t)(bits >> j & 1);
    }
    for (size_t h = 0; h < heads; h++) {
        __m256 sum = _mm256_setzero_ps();
        for (size_t i = 0; i < n; i += 8) {
            uint64_t flags = 0; /* those that are not there want nothing, and their numbers are 0 */
            memcpy(&flags, wanted + i, n - i < 8 ? n - i : 8);
            const __m256i words = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)flags));
            const __m256 kept = _mm256_castsi256_ps(_mm256_cmpeq_epi32(words, _mm256_setzero_si256()));
            sum = _mm256_add_ps(sum, _mm256_and_ps(kept, dp_load_first(x + h * x_stride + i, n - i)));
        }
        left[h] += dp_sum_lanes(sum);
    }
}

/* tanh(z) of |z| = e / (e + 2), e = expm1(2 |z|): good to a few ulp near 0, too, where 1 - 2 / (exp(2 z) + 1) would not be. */
static void soft_cap(float *x, size_t n, float add, float cap)
{
    const __m256 offset = _mm256_set1_ps(add), bound = _mm256_set1_ps(cap), two = _mm256_set1_ps(2);
    const __m256 sign_bit = _mm256_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i += 8) {
        const __m256 z = _mm256_div_ps(_mm256_add_ps(dp_load_first(x + i, n - i), offset), bound);
        const __m256 e = dp_bounded_expm1(_mm256_mul_ps(two, _mm256_andnot_ps(sign_bit, z)));
        const __m256 y = _mm256_mul_ps(bound, _mm256_div_ps(e, _mm256_add_ps(e, two)));
        dp_store_first(x + i, n - i, _mm256_or_ps(y, _mm256_and_ps(sign_bit, z)));
    }
}

void dp_avx2_init_softmax(dp_kernels *k)
{
    k->max = max_of;
    k->exp_sum = exp_sum;
    k->split_masses = split_masses;
    k->soft_cap = soft_cap;
}
