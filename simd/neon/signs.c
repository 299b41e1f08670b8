/* NEON test of keys by their signs. A vector has a byte of each of a group's 16 tokens; sums are in bytes as far as these hold
 * them. A group is unpacked once for all heads. */
#include <string.h>

#include "neon.h"

#include "../lines.h"

enum { BYTES = DP_MAX_DIM / 8, BYTE_SUMS = 4 /* bytes of signs whose sums a byte holds: eight entries */ };

typedef struct unpacked {
    uint8x16_t low[BYTES], high[BYTES];
} unpacked;

static void unpack(const uint8_t *group, size_t d, unpacked *out)
{
    for (size_t b = 0; b < d / 8; b++) {
        const uint8x16_t packed = vld1q_u8(group + b * DP_SIGN_GROUP);
        out->low[b] = vandq_u8(packed, vdupq_n_u8(15));
        out->high[b] = vshrq_n_u8(packed, 4);
    }
}

/* Sums of a group's tokens, in 16 bits. */
static uint16x8x2_t sum_group(const uint8_t *table, size_t d, const unpacked *group)
{
    uint16x8x2_t sums = {{vdupq_n_u16(0), vdupq_n_u16(0)}};
    for (size_t first = 0; first < d / 8; first += BYTE_SUMS) {
        uint8x16_t sum = vdupq_n_u8(0);
        for (size_t b = first; b < d / 8 && b < first + BYTE_SUMS; b++) {
            sum = vaddq_u8(sum, vqtbl1q_u8(vld1q_u8(table + 16 * b), group->low[b]));
            sum = vaddq_u8(sum, vqtbl1q_u8(vld1q_u8(table + 2 * d + 16 * b), group->high[b]));
        }
        sums.val[0] = vaddw_u8(sums.val[0], vget_low_u8(sum));
        sums.val[1] = vaddw_high_u8(sums.val[1], sum);
    }
    return sums;
}

/* All ones for those of four tokens whose logits are not within the limit. */
DP_INLINE uint32x4_t beyond(const dp_sign_queries *q, size_t h, uint32x4_t sums, uint32x4_t steps, uint32_t base)
{
    const float32x4_t step = vreinterpretq_f32_u32(vaddq_u32(vshlq_n_u32(steps, 19), vdupq_n_u32(base)));
    const float32x4_t x = vmulq_f32(vmulq_f32(vdupq_n_f32(q->factor[h]), step),
                                    vsubq_f32(vcvtq_f32_u32(sums), vdupq_n_f32(q->centre[h])));
    return vmvnq_u32(vcleq_f32(x, vdupq_n_f32(q->limit[h])));
}

/* The same of eight. */
DP_INLINE uint8x8_t beyond_of_8(const dp_sign_queries *q, size_t h, uint16x8_t sums, uint8x8_t steps, uint32_t base)
{
    const uint16x8_t wide = vmovl_u8(steps);
    const uint32x4_t low = beyond(q, h, vmovl_u16(vget_low_u16(sums)), vmovl_u16(vget_low_u16(wide)), base);
    const uint32x4_t high = beyond(q, h, vmovl_high_u16(sums), vmovl_high_u16(wide), base);
    return vmovn_u16(vcombine_u16(vmovn_u32(low), vmovn_u32(high)));
}

static int signs_exceed(const dp_sign_queries *q, const dp_sign_tokens *t, uint8_t *marks)
{
    static const uint8_t numbers[DP_SIGN_GROUP] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    lines ahead = {(uintptr_t)t->ahead, t->ahead_lines};
    uint8x16_t any = vdupq_n_u8(0);
    for (size_t i = 0; i < t->n; i += DP_SIGN_GROUP) {
        const size_t left = t->n - i, n = left < DP_SIGN_GROUP ? left : DP_SIGN_GROUP;
        uint8_t bytes[DP_SIGN_GROUP] = {0};
        memcpy(bytes, t->step + i, n);
        const uint8x16_t steps = vld1q_u8(bytes), asked = vcltq_u8(vld1q_u8(numbers), vdupq_n_u8((uint8_t)n));
        fetch_lines(&ahead, (2 * q->d + 63) / 64);
        unpacked group;
        unpack(t->signs + i / DP_SIGN_GROUP * 2 * q->d, q->d, &group);
        uint8x16_t found = vdupq_n_u8(0);
        for (size_t h = 0; h < q->heads; h++) {
            const uint16x8x2_t sums = sum_group(q->table + h * 4 * q->d, q->d, &group);
            found = vorrq_u8(found,
                             vcombine_u8(beyond_of_8(q, h, sums.val[0], vget_low_u8(steps), t->step_base),
                                         beyond_of_8(q, h, sums.val[1], vget_high_u8(steps), t->step_base)));
        }
        any = vorrq_u8(any, vandq_u8(asked, found));
        vst1q_u8(bytes, vandq_u8(found, vdupq_n_u8(1)));
        memcpy(marks + i, bytes, n);
    }
    return vmaxvq_u8(any) != 0;
}

void dp_neon_init_signs(dp_kernels *k)
{
    k->signs_exceed = signs_exceed;
}
