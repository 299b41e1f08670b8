/* Scalar test of keys by their signs. */
#include "scalar.h"

static uint32_t sum_of(const uint8_t *low, size_t d, const uint8_t *group, size_t t)
{
    const uint8_t *const high = low + 2 * d;
    uint32_t sum = 0;
    for (size_t b = 0; b < d / 8; b++) {
        const uint8_t byte = group[b * DP_SIGN_GROUP + t];
        sum += low[b * 16 + byte % 16] + high[b * 16 + byte / 16];
    }
    return sum;
}

static int exceeds(const dp_sign_queries *q, size_t h, const dp_sign_tokens *t, size_t i)
{
    const uint8_t *const group = t->signs + i / DP_SIGN_GROUP * 2 * q->d;
    const uint32_t sum = sum_of(q->table + h * 4 * q->d, q->d, group, i % DP_SIGN_GROUP);
    const float step = dp_code_step(t->step_base, t->step[i]);
    return !(q->factor[h] * step * ((float)sum - q->centre[h]) <= q->limit[h]);
}

static int signs_exceed(const dp_sign_queries *q, const dp_sign_tokens *t, uint8_t *marks)
{
    int any = 0;
    for (size_t i = 0; i < t->n; i++) {
        marks[i] = 0;
        for (size_t h = 0; h < q->heads && !marks[i]; h++) marks[i] = (uint8_t)exceeds(q, h, t, i);
        any |= marks[i];
    }
    return any;
}

void dp_scalar_init_signs(dp_kernels *k)
{
    k->signs_exceed = signs_exceed;
}
