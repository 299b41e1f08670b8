/* Software conversion of single 16-bit floats, for the scalar kernels and for the tails of vector kernels.
 * Everything is static: an ISA's object must not export code that other translation units could pick up. */
#ifndef DP_SIMD_HALF_H
#define DP_SIMD_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t dp_bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float dp_float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float dp_f32_from_bf16(uint16_t half)
{
    return dp_float_of((uint32_t)half << 16);
}

static inline uint16_t dp_bf16_from_f32(float x)
{
    const uint32_t bits = dp_bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u); /* NaN: quiet, and never rounded up to Inf */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float dp_f32_from_f16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 0x1fu, fraction = half & 0x3ffu;
    if (exponent == 0) /* zero and denormals: fraction * 2^-24 is exact in binary32 */
        return dp_float_of(sign | dp_bits_of((float)fraction * 0x1p-24f));
    if (exponent == 31)
        return dp_float_of(sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0));
    return dp_float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static inline uint16_t dp_f16_from_f32(float x)
{
    const uint32_t bits = dp_bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) /* NaN: quiet, upper payload kept */
        half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    else if (magnitude >= 0x477ff000u) /* 65520 and more round to Inf */
        half = 0x7c00u;
    else if (magnitude < 0x38800000u) /* below 2^-14: in 0.5 + x the last place is 2^-24, a denormal's unit */
        half = dp_bits_of(dp_float_of(magnitude) + 0.5f) - 0x3f000000u;
    else
        half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    return (uint16_t)(sign | half);
}

#endif
