/* quant.c: element types of GGUF tensors. Each block format is decoded by one function that handles one block; the
 * formats are those that the GGUF specification and ggml's reference define, little-endian. */
#include "quant.h"

#include <math.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "GGUF data is little-endian; so must the machine be"
#endif

static float f16_to_f32(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    uint32_t bits;
    if (magnitude >= 0x7c00u) { /* Inf, NaN */
        bits = magnitude << 13 | 0x7f800000u;
    } else if (magnitude >= 0x400u) {
        bits = (magnitude << 13) + (112u << 23);
    } else { /* zero, denormal: a multiple of 2^-24 */
        const float value = (float)magnitude * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t f32_to_f16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) { /* NaN, made quiet */
        half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    } else if (magnitude >= 0x477ff000u) { /* rounds to 65536 or more */
        half = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {
        half = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
    } else { /* denormal: the last place of 0.5 .. 1 is 2^-24, so the addition rounds to nearest even there */
        float shifted = fabsf(value) + 0.5f;
        memcpy(&half, &shifted, sizeof half);
        half -= 0x3f000000u;
    }
    return (uint16_t)(sign | half);
}

static float bf16_to_f32(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static float read_f16(const uint8_t *at)
{
    uint16_t half;
    memcpy(&half, at, sizeof half);
    return f16_to_f32(half);
}

/* ---- Blocks of 32 elements ---- */

/* f16 scale, 16 bytes of nibbles: the low ones are elements 0 .. 15, the high ones 16 .. 31. */
static void q4_0_block(const uint8_t *block, float *dst)
{
    const float scale = read_f16(block);
    for (int i = 0; i < 16; i++) {
        dst[i] = (float)((block[2 + i] & 15) - 8) * scale;
        dst[i + 16] = (float)((block[2 + i] >> 4) - 8) * scale;
    }
}

/* f16 scale, f16 minimum, nibbles. */
static void q4_1_block(const uint8_t *block, float *dst)
{
    const float scale = read_f16(block), minimum = read_f16(block + 2);
    for (int i = 0; i < 16; i++) {
        dst[i] = (float)(block[4 + i] & 15) * scale + minimum;
        dst[i + 16] = (float)(block[4 + i] >> 4) * scale + minimum;
    }
}

/* f16 scale, 32 fifth bits, nibbles. */
static void q5_0_block(const uint8_t *block, float *dst)
{
    const float scale = read_f16(block);
    uint32_t fifth;
    memcpy(&fifth, block + 2, sizeof fifth);
    for (int i = 0; i < 16; i++) {
        dst[i] = (float)((int)((block[6 + i] & 15u) | (fifth >> i & 1u) << 4) - 16) * scale;
        dst[i + 16] = (float)((int)((uint32_t)(block[6 + i] >> 4) | (fifth >> (i + 16) & 1u) << 4) - 16) * scale;
    }
}

/* f16 scale, f16 minimum, 32 fifth bits, nibbles. */
static void q5_1_block(const uint8_t *block, float *dst)
{
    const float scale = read_f16(block), minimum = read_f16(block + 2);
    uint32_t fifth;
    memcpy(&fifth, block + 4, sizeof fifth);
    for (int i = 0; i < 16; i++) {
        dst[i] = (float)((block[8 + i] & 15u) | (fifth >> i & 1u) << 4) * scale + minimum;
        dst[i + 16] = (float)((uint32_t)(block[8 + i] >> 4) | (fifth >> (i + 16) & 1u) << 4) * scale + minimum;
    }
}

/* f16 scale, 32 signed bytes. */
static void q8_0_block(const uint8_t *block, float *dst)
{
    const float scale = read_f16(block);
    for (int i = 0; i < 32; i++) dst[i] = (float)(int8_t)block[2 + i] * scale;
}

/* ---- Blocks of 256 elements ---- */

/* Q4_K and Q5_K: eight 6-bit scales and eight 6-bit minima in 12 bytes. The first four of each are the low six bits of
 * bytes 0 .. 3 and 4 .. 7; the others have their low four bits in bytes 8 .. 11 and the upper two atop bytes 0 .. 7. */
static void unpack_scales(const uint8_t *packed, uint8_t scale[8], uint8_t minimum[8])
{
    for (int i = 0; i < 4; i++) {
        scale[i] = packed[i] & 63;
        minimum[i] = packed[i + 4] & 63;
        scale[i + 4] = (uint8_t)((packed[i + 8] & 15) | packed[i] >> 6 << 4);
        minimum[i + 4] = (uint8_t)(packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4);
    }
}

/* f16 scale of scales, f16 scale of minima, 12 bytes of both; then (Q5_K) 32 bytes of fifth bits; then nibbles: 32
 * bytes hold 64 elements, the low nibbles the first 32. Bit i of fifth byte j belongs to element 32 i + j. */
static void k_block(const uint8_t *block, const uint8_t *fifth, const uint8_t *nibbles, float *dst)
{
    const float scale_of_scales = read_f16(block), scale_of_minima = read_f16(block + 2);
    uint8_t scale[8], minimum[8];
    unpack_scales(block + 4, scale, minimum);
    for (int part = 0; part < 8; part++) {
        const float s = scale_of_scales * (float)scale[part], m = scale_of_minima * (float)minimum[part];
        const uint8_t *bytes = nibbles + part / 2 * 32;
        const int shift = part % 2 * 4;
        for (int i = 0; i < 32; i++) {
            const int high = fifth ? (fifth[i] >> part & 1) << 4 : 0;
            dst[part * 32 + i] = s * (float)((bytes[i] >> shift & 15) | high) - m;
        }
    }
}

static void q4_k_block(const uint8_t *block, float *dst)
{
    k_block(block, NULL, block + 16, dst);
}

static void q5_k_block(const uint8_t *block, float *dst)
{
    k_block(block, block + 16, block + 48, dst);
}

/* 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales (16 elements each), f16 scale of scales. In
 * each half of 128 elements, quarter j takes the nibbles of bytes (j % 2) * 32 .. and the bit pair j of 32 bytes. */
static void q6_k_block(const uint8_t *block, float *dst)
{
    const float scale_of_scales = read_f16(block + 208);
    for (int part = 0; part < 8; part++) {
        const int half = part / 4, quarter = part % 4;
        const uint8_t *low = block + half * 64 + quarter % 2 * 32, *high = block + 128 + half * 32;
        for (int i = 0; i < 32; i++) {
            const float scale = scale_of_scales * (float)(int8_t)block[192 + part * 2 + i / 16];
            const int value = (low[i] >> quarter / 2 * 4 & 15) | (high[i] >> quarter * 2 & 3) << 4;
            dst[part * 32 + i] = scale * (float)(value - 32);
        }
    }
}

/* ---- All types ---- */

static const struct {
    uint32_t type;
    quant_layout layout;
    void (*decode)(const uint8_t *block, float *dst); /* NULL for the unblocked types */
} types[] = {
    {QUANT_F32, {"f32", 1, 4}, NULL},
    {QUANT_F16, {"f16", 1, 2}, NULL},
    {QUANT_BF16, {"bf16", 1, 2}, NULL},
    {QUANT_Q4_0, {"q4_0", 32, 18}, q4_0_block},
    {QUANT_Q4_1, {"q4_1", 32, 20}, q4_1_block},
    {QUANT_Q5_0, {"q5_0", 32, 22}, q5_0_block},
    {QUANT_Q5_1, {"q5_1", 32, 24}, q5_1_block},
    {QUANT_Q8_0, {"q8_0", 32, 34}, q8_0_block},
    {QUANT_Q4_K, {"q4_k", 256, 144}, q4_k_block},
    {QUANT_Q5_K, {"q5_k", 256, 176}, q5_k_block},
    {QUANT_Q6_K, {"q6_k", 256, 210}, q6_k_block},
};

const quant_layout *quant_get_layout(uint32_t type)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].type == type) return &types[i].layout;
    return NULL;
}

void quant_to_f32(quant_type type, const void *src, size_t n, float *dst)
{
    const uint8_t *bytes = src;
    if (type == QUANT_F32) {
        memcpy(dst, src, n * sizeof *dst);
        return;
    }
    if (type == QUANT_F16) {
        for (size_t i = 0; i < n; i++) dst[i] = read_f16(bytes + 2 * i);
        return;
    }
    if (type == QUANT_BF16) {
        for (size_t i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, bytes + 2 * i, sizeof half);
            dst[i] = bf16_to_f32(half);
        }
        return;
    }
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        if (types[t].type != (uint32_t)type) continue;
        const quant_layout *layout = &types[t].layout;
        for (size_t i = 0; i < n / layout->block; i++)
            types[t].decode(bytes + i * layout->block_bytes, dst + i * layout->block);
    }
}

static bool q8_0_from_f32(const float *src, size_t n, uint8_t *dst)
{
    for (size_t b = 0; b < n / 32; b++, src += 32, dst += 34) {
        float largest = 0;
        bool finite = true;
        for (int i = 0; i < 32; i++) {
            finite = finite && isfinite(src[i]);
            largest = fmaxf(largest, fabsf(src[i]));
        }
        const float scale = largest / 127.0f;
        const uint16_t half = f32_to_f16(scale);
        if (!finite || half >= 0x7c00u) return false;
        const float inverse = scale >= 0x1p-126f ? 1.0f / scale : 0.0f; /* denormals: it could overflow; f16 has 0 */
        memcpy(dst, &half, sizeof half);
        for (int i = 0; i < 32; i++) dst[2 + i] = (uint8_t)(int8_t)roundf(src[i] * inverse);
    }
    return true;
}

bool quant_from_f32(quant_type type, const float *src, size_t n, void *dst)
{
    uint8_t *bytes = dst;
    switch (type) {
    case QUANT_F32:
        memcpy(dst, src, n * sizeof *src);
        return true;
    case QUANT_F16:
    case QUANT_BF16:
        for (size_t i = 0; i < n; i++) {
            const uint16_t half = type == QUANT_F16 ? f32_to_f16(src[i]) : f32_to_bf16(src[i]);
            if (type == QUANT_F16 && (half & 0x7fffu) == 0x7c00u && isfinite(src[i])) return false;
            memcpy(bytes + 2 * i, &half, sizeof half);
        }
        return true;
    case QUANT_Q8_0:
        return q8_0_from_f32(src, n, dst);
    default:
        return false;
    }
}
