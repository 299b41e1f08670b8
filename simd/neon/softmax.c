/* NEON softmax: the maximum, exponentials with their sum, which tokens have much of it, and soft caps. */
#include "neon.h"

static float max_of(const float *x, size_t n)
{
    float32x4_t largest[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++) largest[v] = vdupq_n_f32(-INFINITY);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) largest[v] = dp_larger(largest[v], vld1q_f32(x + i + 4 * v));
    }
    for (; i + 4 <= n; i += 4) largest[0] = dp_larger(largest[0], vld1q_f32(x + i));
    for (; i < n; i++) largest[1] = dp_larger(largest[1], vld1q_dup_f32(x + i));
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(largest[0], largest[1]), vmaxq_f32(largest[2], largest[3])));
}

static float exp_sum(float *x, size_t n, float max)
{
    const float32x4_t origin = vdupq_n_f32(max == -INFINITY ? 0 : max);
    float32x4_t sum[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++) sum[v] = vdupq_n_f32(0);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++) {
            const float32x4_t y = dp_exp(vsubq_f32(vld1q_f32(x + i + 4 * v), origin));
            vst1q_f32(x + i + 4 * v, y);
            sum[v] = vaddq_f32(sum[v], y);
        }
    }
    for (; i < n; i += 4) {
        const float32x4_t y = dp_exp(vsubq_f32(dp_load_first(x + i, n - i), origin));
        dp_store_first(x + i, n - i, y);
        sum[0] = vaddq_f32(sum[0], dp_keep(dp_mask4(n - i), y));
    }
    return dp_sum_lanes(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
}

static void split_masses(float *x, size_t x_stride, size_t heads, size_t n, const float *max, const float *limit,
                         uint8_t *wanted, float *left)
{
    for (size_t i = 0; i < n; i += 4) {
        const size_t here = n - i < 4 ? n - i : 4;
        uint32x4_t within = vdupq_n_u32(UINT32_MAX);
        for (size_t h = 0; h < heads; h++) {
            float *const at = x + h * x_stride + i;
            const float32x4_t y = dp_exp(vsubq_f32(dp_load_first(at, here), vdupq_n_f32(max[h])));
            dp_store_first(at, here, y);
            within = vandq_u32(within, vcleq_f32(y, vdupq_n_f32(limit[h])));
        }
        uint32_t lanes[4];
        vst1q_u32(lanes, within);
        for (size_t j = 0; j < here; j++) wanted[i + j] = !lanes[j];
    }
    for (size_t h = 0; h < heads; h++) {
        float32x4_t sum = vdupq_n_f32(0);
        for (size_t i = 0; i < n; i += 4) {
            uint32_t lanes[4] = {0}; /* those that are not there are 0, and so are their numbers */
            for (size_t j = 0; j < 4 && i + j < n; j++) lanes[j] = wanted[i + j];
            const uint32x4_t kept = vceqq_u32(vld1q_u32(lanes), vdupq_n_u32(0));
            sum = vaddq_f32(sum, dp_keep(kept, dp_load_first(x + h * x_stride + i, n - i)));
        }
        left[h] += dp_sum_lanes(sum);
    }
}

/* tanh(z) of |z| = e / (e + 2), e = expm1(2 |z|): good to a few ulp near 0, too, where 1 - 2 / (exp(2 z) + 1) would not be. */
static void soft_cap(float *x, size_t n, float add, float cap)
{
    const float32x4_t offset = vdupq_n_f32(add), bound = vdupq_n_f32(cap), two = vdupq_n_f32(2);
    for (size_t i = 0; i < n; i += 4) {
        const float32x4_t z = vdivq_f32(vaddq_f32(dp_load_first(x + i, n - i), offset), bound);
        const float32x4_t e = dp_bounded_expm1(vmulq_f32(two, vabsq_f32(z)));
        const float32x4_t y = vmulq_f32(bound, vdivq_f32(e, vaddq_f32(e, two)));
        dp_store_first(x + i, n - i, vbslq_f32(vdupq_n_u32(0x80000000u), z, y));
    }
}

void dp_neon_init_softmax(dp_kernels *k)
{
    k->max = max_of;
    k->exp_sum = exp_sum;
    k->split_masses = split_masses;
    k->soft_cap = soft_cap;
}
