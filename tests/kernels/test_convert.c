/* Conversions: exact. All 65536 values of each 16-bit type to f32; to 16 bits all values, all midpoints between
 * neighbours, the floats next to both, and random bit patterns; against arithmetic in double. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "oracle.h"

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void check_widening(dp_type type, const uint16_t *values, size_t n, size_t shift)
{
    const uint16_t *const src = place(values, n * sizeof *values, shift);
    float *const dst = place(NULL, n * sizeof *dst, shift * 2);
    kernels.to_f32[type](dst, src, n);
    for (size_t i = 0; i < n; i++) {
        const double expected = oracle_element(values, i, type);
        if (isnan(expected) ? !isnan(dst[i]) : bits_of(dst[i]) != bits_of((float)expected))
            report_failure("0x%04x became %a, expected %a", values[i], (double)dst[i], expected);
    }
    release_buffers();
}

static void check_narrowing(dp_type type, const float *values, size_t n, size_t shift)
{
    const uint16_t quiet = type == DP_F16 ? 0x7e00 : 0x7fc0;
    const float *const src = place(values, n * sizeof *values, shift * 2);
    uint16_t *const dst = place(NULL, n * sizeof *dst, shift);
    kernels.from_f32[type](dst, src, n);
    for (size_t i = 0; i < n; i++) {
        const int good = isnan(values[i]) ? (dst[i] & quiet) == quiet : dst[i] == oracle_round(values[i], type);
        if (!good)
            report_failure("%a (bits 0x%08x) became 0x%04x, expected 0x%04x", (double)values[i], bits_of(values[i]), dst[i],
                           isnan(values[i]) ? quiet : oracle_round(values[i], type));
    }
    release_buffers();
}

static const dp_type halves[] = {DP_F16, DP_BF16};

START_TEST(widen_every_value)
{
    const dp_type type = halves[_i];
    describe("to_f32 from %s, all values", type_name(type));
    uint16_t *const values = malloc(65536 * sizeof *values);
    for (size_t i = 0; i < 65536; i++)
        values[i] = (uint16_t)i;
    check_widening(type, values, 65536, 0);
    free(values);
}
END_TEST

START_TEST(round_at_every_boundary)
{
    const dp_type type = halves[_i];
    describe("from_f32 to %s, values and midpoints", type_name(type));
    enum { PER_VALUE = 12 };
    float *const values = malloc(32768 * PER_VALUE * sizeof *values);
    size_t n = 0;
    const uint16_t infinity = type == DP_F16 ? 0x7c00 : 0x7f80;
    for (uint16_t half = 0; half < infinity; half++) {
        const uint16_t next = half + 1;
        const double value = oracle_element(&half, 0, type);
        /* the number after the largest would be twice as far as the last step again */
        const uint16_t before = half - 1;
        const double step = next < infinity ? oracle_element(&next, 0, type) - value
                                            : value - oracle_element(&before, 0, type);
        const float exact = (float)value, middle = (float)(value + step / 2);
        const float around[] = {exact, nextafterf(exact, INFINITY), nextafterf(exact, -INFINITY),
                                middle, nextafterf(middle, INFINITY), nextafterf(middle, -INFINITY)};
        for (size_t i = 0; i < 6; i++) {
            values[n++] = around[i];
            values[n++] = -around[i];
        }
    }
    check_narrowing(type, values, n, 0);
    free(values);
}
END_TEST

START_TEST(round_random_bits_and_nan)
{
    const dp_type type = halves[_i];
    describe("from_f32 to %s, random bits", type_name(type));
    start_random();
    enum { N = 500000 };
    float *const values = malloc(N * sizeof *values);
    for (size_t i = 0; i < N; i++) {
        uint32_t bits = (uint32_t)random_bits();
        if (i % 8 == 0) /* NaN, signalling ones and those with payload in the low bits only among them */
            bits = (bits & 0x80000000u) | 0x7f800000u | 1u << random_below(23);
        else if (i % 8 == 1) /* the range of f16 */
            bits = (bits & 0x8fffffffu) | 0x30000000u;
        memcpy(values + i, &bits, sizeof bits);
    }
    check_narrowing(type, values, N, 0);
    free(values);
}
END_TEST

START_TEST(every_length)
{
    start_random();
    float values[200];
    uint16_t half_values[200];
    for (size_t i = 0; i < 200; i++)
        half_values[i] = (uint16_t)random_bits();
    fill(values, 200, SPECIAL);
    for (size_t n = 0; n <= 200; n++)
        for (size_t t = 0; t < 2; t++)
            for (size_t shift = 0; shift <= 10; shift += 2) {
                describe("conversion of %zu numbers, %s, shift %zu", n, type_name(halves[t]), shift);
                check_widening(halves[t], half_values, n, shift);
                check_narrowing(halves[t], values, n, shift);
            }
    for (size_t n = 0; n <= 70; n++) { /* f32 to f32 is a copy, bit for bit */
        describe("copy of %zu numbers", n);
        float *const there = place(NULL, n * sizeof *there, 0), *const back = place(NULL, n * sizeof *back, 4);
        kernels.to_f32[DP_F32](there, values, n);
        kernels.from_f32[DP_F32](back, there, n);
        expect_same("copy", back, values, n * sizeof *back);
        release_buffers();
    }
}
END_TEST

/* A row of n numbers: the step, the nearest multiple of it for each, and back, exactly. */
static void check_int8(const float *values, size_t n, size_t shift)
{
    signed char *const row = place(NULL, n + sizeof(float), shift);
    kernels.from_f32[DP_INT8](row, place(values, n * sizeof *values, shift), n);
    float largest = 0, step;
    for (size_t j = 0; j < n; j++)
        largest = isfinite(values[j]) && !isnan(largest) ? fmaxf(largest, fabsf(values[j])) : NAN;
    memcpy(&step, row + n, sizeof step);
    const float expected = isfinite(1 / (largest / 127)) ? largest / 127 : 0;
    if (isnan(largest) ? !isnan(step) : step != expected)
        report_failure("the step is %a, expected %a", (double)step, (double)expected);
    float *const back = place(NULL, n * sizeof *back, shift);
    kernels.to_f32[DP_INT8](back, row, n);
    for (size_t j = 0; j < n; j++) {
        const double exact = (double)step * row[j];
        if (isnan(step) ? !isnan(back[j]) : bits_of(back[j]) != bits_of((float)exact))
            report_failure("%d of %a became %a", row[j], (double)step, (double)back[j]);
        if (step > 0 && !(fabs(values[j] / (double)step - row[j]) <= 0.5 + 0x1p-15))
            report_failure("%a in steps of %a became %d", (double)values[j], (double)step, row[j]);
        if (!(step > 0) && row[j])
            report_failure("%d in steps of %a", row[j], (double)step);
    }
    release_buffers();
}

START_TEST(int8_rows)
{
    start_random();
    float values[200];
    for (size_t n = 0; n <= 200; n++)
        for (int kind = 0; kind < CONTENTS_COUNT; kind++) {
            const size_t shift = random_shift(4);
            describe("int8 of %zu numbers, contents %d, shift %zu", n, kind, shift);
            fill(values, n, (contents)kind);
            check_int8(values, n, shift);
            for (size_t j = 0; j < n; j++) /* ties, and all denormal */
                values[j] = kind ? (float)random_below(100) * 0x1p-149f : j ? (float)random_below(254) - 126.5f : 127;
            check_int8(values, n, shift);
        }
    const float ties[] = {127, 0.5f, 1.5f, -2.5f, -127, 126.5f};
    signed char row[sizeof ties / sizeof *ties + sizeof(float)];
    kernels.from_f32[DP_INT8](row, ties, sizeof ties / sizeof *ties);
    ck_assert_mem_eq(row, ((signed char[]){127, 0, 2, -2, -127, 126}), sizeof ties / sizeof *ties);
}
END_TEST

TCase *convert_tests(void)
{
    TCase *const tests = tcase_create("convert");
    tcase_add_loop_test(tests, widen_every_value, 0, 2);
    tcase_add_loop_test(tests, round_at_every_boundary, 0, 2);
    tcase_add_loop_test(tests, round_random_bits_and_nan, 0, 2);
    tcase_add_test(tests, every_length);
    tcase_add_test(tests, int8_rows);
    return tests;
}
