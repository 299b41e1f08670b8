/* gguf_quant.c: every element type against an oracle in double that finds one element at a time by the format's
 * definition; and the types that are written against their rounding. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../suite.h"
#include "quant.h"
#include "scratch.h"

/* ---- The oracle ---- */

static double half(const unsigned char *at)
{
    const unsigned bits = at[0] | (unsigned)at[1] << 8;
    const double sign = bits >> 15 ? -1 : 1;
    const int exponent = bits >> 10 & 31;
    const double fraction = (bits & 1023) / 1024.0;
    if (exponent == 31) return bits & 1023 ? (double)NAN : sign * INFINITY;
    return exponent ? sign * ldexp(1 + fraction, exponent - 15) : sign * ldexp(fraction, -14);
}

/* Bits first .. first + n - 1 of little-endian bytes. */
static unsigned bits(const unsigned char *from, size_t first, size_t n)
{
    unsigned value = 0;
    for (size_t i = 0; i < n; i++) value |= (from[(first + i) / 8] >> (first + i) % 8 & 1u) << i;
    return value;
}

/* The six-bit scale (kind 0) or minimum (kind 1) j of the 12 packed bytes of Q4_K and Q5_K. */
static unsigned six_bits(const unsigned char *packed, size_t kind, size_t j)
{
    if (j < 4) return bits(packed, (kind * 4 + j) * 8, 6);
    return bits(packed, (j + 4) * 8 + kind * 4, 4) | bits(packed, (kind * 4 + j - 4) * 8 + 6, 2) << 4;
}

/* Element i of a block; *size receives the magnitude of the terms it is made of. */
static double element(quant_type type, const unsigned char *b, size_t i, double *size)
{
    const size_t nibble = i % 16 * 8 + i / 16 * 4; /* bit where an element of 4 bits starts, in blocks of 32 */
    double scale, q, minimum = 0;
    switch (type) {
    case QUANT_Q4_0: scale = half(b), q = (double)bits(b + 2, nibble, 4) - 8; break;
    case QUANT_Q4_1: scale = half(b), minimum = half(b + 2), q = bits(b + 4, nibble, 4); break;
    case QUANT_Q5_0: scale = half(b), q = (double)bits(b + 6, nibble, 4) + 16 * bits(b + 2, i, 1) - 16; break;
    case QUANT_Q5_1:
        scale = half(b), minimum = half(b + 2), q = bits(b + 8, nibble, 4) + 16 * bits(b + 4, i, 1);
        break;
    case QUANT_Q8_0: scale = half(b), q = b[2 + i] < 128 ? b[2 + i] : b[2 + i] - 256.0; break;
    case QUANT_Q4_K:
    case QUANT_Q5_K: {
        const size_t part = i / 32, at = (i / 64 * 32 + i % 32) * 8 + part % 2 * 4;
        scale = half(b) * six_bits(b + 4, 0, part);
        minimum = -half(b + 2) * six_bits(b + 4, 1, part);
        q = type == QUANT_Q4_K ? bits(b + 16, at, 4) : bits(b + 48, at, 4) + 16 * bits(b + 16, i % 32 * 8 + part, 1);
        break;
    }
    case QUANT_Q6_K: {
        const size_t in_half = i % 128, low = (i / 128 * 64 + in_half % 64) * 8 + in_half / 64 * 4,
                     high = (i / 128 * 32 + in_half % 32) * 8 + in_half / 32 * 2;
        const double signed_scale = b[192 + i / 16] < 128 ? b[192 + i / 16] : b[192 + i / 16] - 256.0;
        scale = half(b + 208) * signed_scale;
        q = (double)(bits(b, low, 4) | bits(b + 128, high, 2) << 4) - 32;
        break;
    }
    default: ck_abort_msg("no oracle for type %d", (int)type);
    }
    *size = fabs(scale * q) + fabs(minimum);
    return scale * q + minimum;
}

/* ---- Tests ---- */

static const quant_type blocked[] = {QUANT_Q4_0, QUANT_Q4_1, QUANT_Q5_0, QUANT_Q5_1,
                                     QUANT_Q8_0, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};

/* Where a type keeps its f16 scales: random bytes must not make them Inf or NaN, which has a test of its own. */
static void make_scales_finite(quant_type type, unsigned char *block)
{
    const size_t at = type == QUANT_Q6_K ? 208 : 0;
    const bool two = type == QUANT_Q4_1 || type == QUANT_Q5_1 || type == QUANT_Q4_K || type == QUANT_Q5_K;
    block[at + 1] &= 0xbf; /* exponents up to 15: and denormals among them */
    if (two) block[at + 3] &= 0xbf;
}

START_TEST(blocks_against_the_oracle)
{
    const quant_type type = blocked[_i];
    const quant_layout *layout = quant_get_layout(type);
    enum { BLOCKS = 500 };
    uint64_t seed = 5;
    const size_t n = BLOCKS * layout->block;
    unsigned char *memory = malloc(BLOCKS * layout->block_bytes + 1), *data = memory + 1; /* not aligned */
    float *values = malloc(n * sizeof *values);
    for (size_t i = 0; i < BLOCKS * layout->block_bytes; i++) data[i] = (unsigned char)random_u32(&seed);
    for (size_t i = 0; i < BLOCKS; i++) make_scales_finite(type, data + i * layout->block_bytes);
    quant_to_f32(type, data, n, values);
    size_t not_zero = 0;
    for (size_t i = 0; i < n; i++) {
        double size;
        const double wanted =
            element(type, data + i / layout->block * layout->block_bytes, i % layout->block, &size);
        if (!(fabs(values[i] - wanted) <= 2 * size * FLT_EPSILON))
            ck_abort_msg("%s, element %zu: %g, must be %g", layout->name, i, (double)values[i], wanted);
        not_zero += values[i] != 0;
    }
    ck_assert_uint_gt(not_zero, n * 3 / 4);
    free(memory);
    free(values);
}
END_TEST

START_TEST(scales_that_are_not_finite)
{
    const quant_type type = blocked[_i];
    unsigned char block[256] = {0};
    float values[256];
    memset(block, 0x11, sizeof block);
    memcpy(block + (type == QUANT_Q6_K ? 208 : 0), "\x00\x7e", 2); /* NaN */
    quant_to_f32(type, block, quant_get_layout(type)->block, values);
    for (size_t i = 0; i < quant_get_layout(type)->block; i++) ck_assert(isnan(values[i]));
}
END_TEST

START_TEST(halves_both_ways)
{
    for (unsigned h = 0; h < 65536; h++) {
        const unsigned char b[2] = {h & 255, h >> 8};
        float value, upper;
        uint16_t back;
        const double wanted = half(b);
        quant_to_f32(QUANT_F16, b, 1, &value);
        assert_quietly(isnan(wanted) ? isnan(value) : (double)value == wanted && !signbit(value) == !(h >> 15));
        assert_quietly(quant_from_f32(QUANT_F16, &value, 1, &back));
        assert_quietly(isnan(wanted) ? (back & 0x7c00) == 0x7c00 && (back & 0x3ff) : back == h);

        const uint32_t word = h << 16;
        memcpy(&upper, &word, sizeof upper);
        quant_to_f32(QUANT_BF16, b, 1, &value);
        assert_quietly(isnan(upper) ? isnan(value) : value == upper && !signbit(value) == !(h >> 15));
        assert_quietly(quant_from_f32(QUANT_BF16, &value, 1, &back));
        assert_quietly(isnan(upper) ? (back & 0x7f80) == 0x7f80 && (back & 0x7f) : back == h);
    }
}
END_TEST

/* The neighbours of the result are not nearer, and where one is as near the result is even. */
static void check_rounding(quant_type type, float value)
{
    uint16_t h;
    float result;
    if (!quant_from_f32(type, &value, 1, &h)) {
        assert_quietly(type == QUANT_F16 && fabsf(value) >= 65520);
        return;
    }
    quant_to_f32(type, &h, 1, &result);
    if (isinf(result)) { /* bf16: the next above the largest would be 2^128 */
        assert_quietly(type == QUANT_BF16 && fabs((double)value) >= 0x1.ffp127);
        return;
    }
    const double error = fabs((double)result - value);
    for (int step = -1; step <= 1; step += 2) {
        const uint16_t neighbour = (uint16_t)(h + step);
        if (((neighbour ^ h) & 0x8000) != 0) continue;
        float other;
        quant_to_f32(type, &neighbour, 1, &other);
        const double other_error = fabs((double)other - value);
        if (!(error < other_error || (error == other_error && h % 2 == 0)))
            ck_abort_msg("%a becomes %a, not %a", (double)value, (double)result, (double)other);
    }
}

START_TEST(rounding_to_halves)
{
    uint64_t seed = 9;
    for (int i = 0; i < 100000; i++) {
        const float scale = ldexpf(1, (int)(random_u32(&seed) % 48) - 30), value = scale * random_normal(&seed);
        check_rounding(QUANT_F16, value);
        check_rounding(QUANT_BF16, value);
        /* Halfway between two neighbours. */
        const uint16_t h = (uint16_t)(random_u32(&seed) % 0x7bff), next = h + 1;
        float low, high;
        quant_to_f32(QUANT_F16, &h, 1, &low);
        quant_to_f32(QUANT_F16, &next, 1, &high);
        check_rounding(QUANT_F16, (low + high) / 2);
        quant_to_f32(QUANT_BF16, &h, 1, &low);
        quant_to_f32(QUANT_BF16, &next, 1, &high);
        check_rounding(QUANT_BF16, low / 2 + high / 2);
    }
    uint16_t h;
    assert_quietly(!quant_from_f32(QUANT_F16, &(float){65520}, 1, &h));
    assert_quietly(quant_from_f32(QUANT_F16, &(float){65519}, 1, &h) && h == 0x7bff);
    assert_quietly(quant_from_f32(QUANT_F16, &(float){-INFINITY}, 1, &h) && h == 0xfc00);
}
END_TEST

START_TEST(q8_0_is_nearest)
{
    uint64_t seed = 3;
    float values[64], back[64];
    unsigned char blocks[68];
    for (int round = 0; round < 2000; round++) {
        const float scale = ldexpf(1, (int)(random_u32(&seed) % 40) - 25);
        for (int i = 0; i < 64; i++) values[i] = scale * random_normal(&seed);
        if (round % 10 == 0) memset(values, 0, 32 * sizeof *values);
        assert_quietly(quant_from_f32(QUANT_Q8_0, values, 64, blocks));
        quant_to_f32(QUANT_Q8_0, blocks, 64, back);
        for (int b = 0; b < 2; b++) {
            double largest = 0;
            for (int i = 0; i < 32; i++) largest = fmax(largest, fabs((double)values[32 * b + i]));
            /* Half a step, and 127 times the rounding of the step to f16. */
            const double step = largest / 127, bound = step / 2 * 1.0001 + 127 * fmax(step * 0x1p-11, 0x1p-25);
            for (int i = 0; i < 32; i++)
                assert_quietly(fabs((double)back[32 * b + i] - (double)values[32 * b + i]) <= bound);
            for (int i = 0; i < 32; i++)
                if (fabs((double)values[32 * b + i]) == largest && largest > 0)
                    assert_quietly(abs((int8_t)blocks[34 * b + 2 + i]) == 127);
        }
    }
    static const float impossible[] = {NAN, INFINITY, -INFINITY, FLT_MAX, 127 * 65520.0f};
    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++) {
        values[31] = impossible[i];
        ck_assert(!quant_from_f32(QUANT_Q8_0, values, 32, blocks));
    }
    for (int i = 0; i < 32; i++) values[i] = 0x1p-149f * (float)i; /* scales whose inverse overflows */
    ck_assert(quant_from_f32(QUANT_Q8_0, values, 32, blocks));
    quant_to_f32(QUANT_Q8_0, blocks, 32, back);
    for (int i = 0; i < 32; i++) ck_assert(back[i] == 0);
}
END_TEST

START_TEST(types_that_are_not_known)
{
    static const uint32_t unknown[] = {4, 5, 9, 10, 11, 15, 16, 29, 31, 1000, UINT32_MAX};
    float values[256] = {0};
    unsigned char block[256];
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) ck_assert_ptr_null(quant_get_layout(unknown[i]));
    ck_assert(!quant_from_f32(QUANT_Q4_K, values, 256, block));
    ck_assert(quant_from_f32(QUANT_F32, values, 8, block));
}
END_TEST

int main(void)
{
    const int n_blocked = sizeof blocked / sizeof blocked[0];
    Suite *suite = suite_create("gguf quant");
    TCase *tcase = tcase_create("types");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, blocks_against_the_oracle, 0, n_blocked);
    tcase_add_loop_test(tcase, scales_that_are_not_finite, 0, n_blocked);
    tcase_add_test(tcase, halves_both_ways);
    tcase_add_test(tcase, rounding_to_halves);
    tcase_add_test(tcase, q8_0_is_nearest);
    tcase_add_test(tcase, types_that_are_not_known);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
