/* NEON logits of keys in four bits, with the product of bytes as a parameter. A vector has four dimensions of a group's
 * four tokens, and its sums are a token a lane. */
#ifndef DP_SIMD_NEON_CODES_H
#define DP_SIMD_NEON_CODES_H

#include "neon.h"

#include "../lines.h"

enum { VECTOR = 16 };

/* What four products a lane are added to; the lanes of total() are the sums. */
typedef struct dot4_sum {
    int32x4_t part[2];
} dot4_sum;
typedef dot4_sum dot4_fn(dot4_sum sum, int8x16_t small, int8x16_t q);
typedef int32x4_t total_fn(dot4_sum sum);
typedef struct dot4 {
    dot4_fn *add;
    total_fn *total;
} dot4;

/* sum_j q(j) code(i, j) of a group's tokens. */
DP_INLINE int32x4_t code_group(const int8_t *q, size_t d, const uint8_t *codes, dot4 by)
{
    dot4_sum sum = {{vdupq_n_s32(0), vdupq_n_s32(0)}};
    for (size_t j = 0; j < 2 * d; j += VECTOR) {
        const uint8x16_t packed = vld1q_u8(codes + j);
        sum = by.add(sum, vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15))), vld1q_s8(q + j));
        sum = by.add(sum, vreinterpretq_s8_u8(vshrq_n_u8(packed, 4)), vld1q_s8(q + 2 * d + j));
    }
    return by.total(sum);
}

/* Of the group whose first token is number `first` of those from the groups' start on: tokens from .. to - 1 are asked for. */
typedef struct window {
    size_t from, to;
} window;

DP_INLINE window window_at(size_t first, const dp_code_tokens *t)
{
    const size_t left = t->skip + t->n - first;
    return (window){first ? 0 : t->skip, left < DP_CODE_GROUP ? left : DP_CODE_GROUP};
}

/* (factor * step) * (2 sum - centre) of a group's tokens; steps are those of the window's tokens. */
DP_INLINE float32x4_t group_logits(const dp_code_queries *q, size_t h, int32x4_t sums, int32_t centre,
                                   const dp_code_tokens *t, size_t first, window w)
{
    float steps[DP_CODE_GROUP] = {0};
    for (size_t i = w.from; i < w.to; i++) steps[i] = dp_code_step(t->step_base, t->step[first + i]);
    const int32x4_t sum = vsubq_s32(vshlq_n_s32(sums, 1), vdupq_n_s32(centre));
    return vmulq_f32(vmulq_f32(vdupq_n_f32(q->factor[h]), vld1q_f32(steps)), vcvtq_f32_s32(sum));
}

DP_INLINE void code_logits_by(const dp_code_queries *q, const dp_code_tokens *t, float *out, size_t out_stride, dot4 by)
{
    const uint8_t *codes = t->codes;
    lines ahead = {(uintptr_t)t->ahead, t->ahead_lines};
    for (size_t first = 0; first < t->skip + t->n && t->n; first += DP_CODE_GROUP, codes += 2 * q->d) {
        const window w = window_at(first, t);
        fetch_lines(&ahead, (2 * q->d + 63) / 64);
        for (size_t h = 0; h < q->heads; h++) {
            const int32x4_t sums = code_group(q->q + h * 4 * q->d, q->d, codes, by);
            float logits[DP_CODE_GROUP];
            vst1q_f32(logits, group_logits(q, h, sums, 15 * q->sum_of_q[h], t, first, w));
            for (size_t i = w.from; i < w.to; i++) out[h * out_stride + first + i - t->skip] = logits[i];
        }
    }
}

#endif
