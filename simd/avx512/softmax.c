/* AVX-512 softmax: the maximum, exponentials with their sum, which tokens have much of it, and soft caps. */
#include "avx512.h"

static float max_of(const float *x, size_t n)
{
    __m512 largest[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++) largest[v] = _mm512_set1_ps(-INFINITY);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) /* max(a, b) is b where a is NaN: NaN are passed over */
            largest[v] = _mm512_max_ps(_mm512_loadu_ps(x + i + 16 * v), largest[v]);
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        largest[0] = _mm512_mask_max_ps(largest[0], mask, _mm512_maskz_loadu_ps(mask, x + i), largest[0]);
    }
    return _mm512_reduce_max_ps(
        _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3])));
}

static float exp_sum(float *x, size_t n, float max)
{
    const __m512 origin = _mm512_set1_ps(max == -INFINITY ? 0 : max);
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        DP_UNROLL
        for (size_t v = 0; v < 2; v++) {
            const __m512 y = dp_exp(_mm512_sub_ps(_mm512_loadu_ps(x + i + 16 * v), origin));
            _mm512_storeu_ps(x + i + 16 * v, y);
            sum[v] = _mm512_add_ps(sum[v], y);
        }
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __m512 y = dp_exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), origin));
        _mm512_mask_storeu_ps(x + i, mask, y);
        sum[0] = _mm512_mask_add_ps(sum[0], mask, sum[0], y);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

static void split_masses(float *x, size_t x_stride, size_t heads, size_t n, const float *max, const float *limit,
                         uint8_t *wanted, float *left)
{
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        __mmask16 above = 0;
        for (size_t h = 0; h < heads; h++) {
            float *const at = x + h * x_stride + i;
            const __m512 y = dp_exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, at), _mm512_set1_ps(max[h])));
            _mm512_mask_storeu_ps(at, mask, y);
            above |= _mm512_cmp_ps_mask(y, _mm512_set1_ps(limit[h]), _CMP_NLE_UQ);
        }
        _mm_mask_storeu_epi8(wanted + i, mask, _mm_maskz_set1_epi8(above, 1));
    }
    for (size_t h = 0; h < heads; h++) {
        __m512 sum = _mm512_setzero_ps();
        for (size_t i = 0; i < n; i += 16) {
            const __mmask16 mask = dp_mask16(n - i);
            const __m128i flags = _mm_maskz_loadu_epi8(mask, wanted + i);
            const __mmask16 kept = mask & _mm_testn_epi8_mask(flags, flags);
            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(kept, x + h * x_stride + i));
        }
        left[h] += _mm512_reduce_add_ps(sum);
    }
}

/* tanh(z) of |z| = e / (e + 2), e = expm1(2 |z|): good to a few ulp near 0, too, where 1 - 2 / (exp(2 z) + 1) would not be. */
static void soft_cap(float *x, size_t n, float add, float cap)
{
    const __m512 offset = _mm512_set1_ps(add), bound = _mm512_set1_ps(cap), two = _mm512_set1_ps(2);
    const __m512 sign_bit = _mm512_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __m512 z = _mm512_div_ps(_mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i), offset), bound);
        const __m512 e = dp_bounded_expm1(_mm512_mul_ps(two, _mm512_andnot_ps(sign_bit, z)));
        const __m512 y = _mm512_mul_ps(bound, _mm512_div_ps(e, _mm512_add_ps(e, two)));
        _mm512_mask_storeu_ps(x + i, mask, _mm512_or_ps(y, _mm512_and_ps(sign_bit, z)));
    }
}

void dp_avx512_init_softmax(dp_kernels *k)
{
    k->max = max_of;
    k->exp_sum = exp_sum;
    k->split_masses = split_masses;
    k->soft_cap = soft_cap;
}
