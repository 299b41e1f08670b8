/* max: exact. exp_sum: each exponential within 4 ulp (or 0 below an argument of -87), the sum within
 * (n + 4) 2^-24 of the sum of the exponentials that were written, which are not negative. split_masses: the exponentials
 * likewise, what is wanted exactly by them. soft_cap: |error| <= 8 2^-24 |result| + cap 2^-148 + 2^-149. */
#include "harness.h"
#include "oracle.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const char *const kinds[] = {"ordinary",      "wide",     "denormal",   "special",
                                    "logits of 1e4", "all -Inf", "around -87", "overflow"};
enum { LOGITS = CONTENTS_COUNT, MASKED, UNDERFLOWING, OVERFLOWING, KINDS };

static void fill_logits(float *x, size_t n, int kind)
{
    if (kind < CONTENTS_COUNT) {
        fill(x, n, (contents)kind);
        return;
    }
    for (size_t i = 0; i < n; i++)
        x[i] = kind == LOGITS         ? random_uniform() * 1e4f
               : kind == MASKED       ? -INFINITY
               : kind == UNDERFLOWING ? -87 + random_uniform() * 20
                                      : 88 + random_uniform() * 2;
}

static float reference_max(const float *x, size_t n)
{
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++)
        if (!isnan(x[i]) && x[i] > largest) largest = x[i];
    return largest;
}

/* exp(x - max) to 4 ulp, or 0 where it is below exp(-87). */
static void expect_exponential(size_t i, float got, float x, float max)
{
    const double exact = oracle_exp(x, max);
    if (exact < exp(-87) && got == 0) return;
    int exponent;
    frexp(fmin(exact, FLT_MAX), &exponent); /* exact is in [2^(exponent - 1), 2^exponent) */
    expect_near("exp", i, got, exact, 4 * ldexp(1, exponent < -125 ? -149 : exponent - 24));
}

static void check_exp_sum(const float *x, size_t n, float max)
{
    float *results[2], sums[2];
    for (size_t run = 0; run < 2; run++) {
        results[run] = place(x, n * sizeof *x, run ? random_shift(4) : 0);
        sums[run] = kernels.exp_sum(results[run], n, max);
    }
    expect_same("exp_sum", results[0], results[1], n * sizeof *x);
    expect_same("sum of exp_sum", sums, sums + 1, sizeof *sums);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += results[0][i];
        expect_exponential(i, results[0][i], x[i], max);
    }
    expect_near("sum", 0, sums[0], sum, ((double)n + 4) * 0x1p-24 * sum);
}

START_TEST(softmax_of_every_length)
{
    start_random();
    float x[1100];
    for (size_t n = 0; n <= 1100; n += n < 150 ? 1 : 1 + random_below(90)) {
        describe("max and exp_sum of %zu numbers, %s", n, kinds[_i]);
        fill_logits(x, n, _i);
        float largest = reference_max(x, n);
        float found[2];
        for (size_t run = 0; run < 2; run++)
            found[run] = kernels.max(place(x, n * sizeof *x, run ? random_shift(4) : 0), n);
        if (found[0] != largest || found[1] != largest)
            report_failure("max is %a and %a, expected %a", (double)found[0], (double)found[1], (double)largest);
        check_exp_sum(x, n, _i == UNDERFLOWING || _i == OVERFLOWING ? 0 : largest);
        release_buffers();
    }
}
END_TEST

static void check_split(const float *x, size_t stride, size_t heads, size_t n)
{
    const size_t all = heads ? (heads - 1) * stride + n : 0;
    float *const max = allocate(heads * sizeof *max), *const limit = allocate(heads * sizeof *limit);
    float *const before = allocate(heads * sizeof *before);
    for (size_t h = 0; h < heads; h++) {
        const float largest = reference_max(x + h * stride, n);
        max[h] = isfinite(largest) ? largest : 3;
        limit[h] = random_below(5) ? 0.5f + 0.5f * random_uniform() : 0;
        before[h] = random_uniform();
    }
    float *results[2], *left[2];
    uint8_t *wanted[2];
    for (size_t run = 0; run < 2; run++) {
        results[run] = place(x, all * sizeof *x, run ? random_shift(4) : 0);
        left[run] = place(before, heads * sizeof *before, run ? random_shift(4) : 0);
        wanted[run] = place(NULL, n, run * random_shift(1));
        kernels.split_masses(results[run], stride, heads, n, place(max, heads * sizeof *max, 0),
                             place(limit, heads * sizeof *limit, 0), wanted[run], left[run]);
    }
    expect_same("split_masses", results[0], results[1], all * sizeof *x);
    expect_same("wanted", wanted[0], wanted[1], n);
    expect_same("left", left[0], left[1], heads * sizeof *before);
    for (size_t i = 0; i < n; i++) {
        bool above = false;
        for (size_t h = 0; h < heads; h++) above |= !(results[0][h * stride + i] <= limit[h]);
        if (wanted[0][i] != above) report_failure("wanted[%zu] is %u, must be %d", i, wanted[0][i], above);
    }
    for (size_t h = 0; h < heads; h++) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            expect_exponential(h * stride + i, results[0][h * stride + i], x[h * stride + i], max[h]);
            if (!wanted[0][i]) sum += results[0][h * stride + i];
        }
        expect_near("left", h, left[0][h], sum + before[h],
                    ((double)n + 4) * 0x1p-24 * (sum + fabs((double)before[h])));
        for (size_t i = n; i < stride && h + 1 < heads; i++)
            if (memcmp(&results[0][h * stride + i], &x[h * stride + i], sizeof *x))
                report_failure("x[%zu], between rows, was written", h * stride + i);
    }
}

START_TEST(masses_of_every_length)
{
    start_random();
    float x[9 * 170];
    for (size_t n = 0; n <= 150; n++) {
        const size_t heads = random_below(10), stride = n + random_below(20);
        describe("split_masses of %zu rows of %zu numbers, %s", heads, n, kinds[_i]);
        fill_logits(x, heads * stride, _i);
        check_split(x, stride, heads, n);
        release_buffers();
    }
}
END_TEST

START_TEST(exp_over_its_range)
{
    start_random();
    enum { N = 4096 };
    float *x = malloc(N * sizeof *x);
    for (size_t round = 0; round < 200; round++) {
        describe("exp_sum, arguments from -110 to 90, round %zu", round);
        for (size_t i = 0; i < N; i++)
            x[i] = round % 2 ? -10 + 100 * random_uniform() : ldexpf(random_uniform(), -(int)random_below(30));
        check_exp_sum(x, N, 0);
        release_buffers();
    }
    free(x);
}
END_TEST

START_TEST(exp_of_special_values)
{
    describe("exp_sum of special values");
    const float x[] = {0,     -0.0f,   -INFINITY, INFINITY,     NAN,  1,  -1e30f,
                       1e30f, FLT_MAX, -FLT_MAX,  FLT_TRUE_MIN, -104, -87};
    const size_t n = sizeof x / sizeof *x;
    check_exp_sum(x, n, 0);
    check_exp_sum(x, n, -INFINITY);
    check_exp_sum(x, n, INFINITY);
    check_exp_sum(x, n, NAN);
    release_buffers();
    float zeros[] = {0, -0.0f};
    kernels.exp_sum(zeros, 2, 0);
    if (zeros[0] != 1 || zeros[1] != 1) report_failure("exp(0) is %a", (double)zeros[0]);
}
END_TEST

static void check_soft_cap(const float *x, size_t n, float add, float cap)
{
    float *results[2];
    for (size_t run = 0; run < 2; run++) {
        results[run] = place(x, n * sizeof *x, run ? random_shift(4) : 0);
        kernels.soft_cap(results[run], n, add, cap);
    }
    expect_same("soft_cap", results[0], results[1], n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        const double exact = oracle_soft_cap(x[i], add, cap);
        expect_near("soft_cap", i, results[0][i], exact, 8 * 0x1p-24 * fabs(exact) + (double)cap * 0x1p-148 + 0x1p-149);
        if (fabsf(results[0][i]) > cap) report_failure("soft_cap[%zu] is beyond the cap", i);
    }
}

START_TEST(soft_caps_of_every_length)
{
    static const float caps[] = {50, 30, 1, 0.01f, 1e6f, 1e30f, FLT_MIN, FLT_TRUE_MIN};
    start_random();
    float x[300];
    for (size_t n = 0; n <= 300; n += n < 150 ? 1 : 1 + random_below(30)) {
        const float cap = caps[n % 8], add = random_below(3) ? 100 * random_uniform() : 0;
        describe("soft_cap of %zu numbers, %s, add %g, cap %g", n, kinds[_i], (double)add, (double)cap);
        fill_logits(x, n, _i);
        check_soft_cap(x, n, add, cap);
        release_buffers();
    }
}
END_TEST

/* From what the cap leaves as it is to what it holds, both signs. */
START_TEST(soft_cap_over_its_range)
{
    start_random();
    enum { N = 4096 };
    float *const x = malloc(N * sizeof *x);
    for (size_t round = 0; round < 100; round++) {
        const float cap = ldexpf(1.5f + 0.5f * random_uniform(), (int)random_below(40) - 20);
        describe("soft_cap, cap %g, round %zu", (double)cap, round);
        for (size_t i = 0; i < N; i++)
            x[i] = cap * (round % 2 ? 12 * random_uniform() : ldexpf(random_uniform(), 4 - (int)random_below(40)));
        check_soft_cap(x, N, 0, cap);
        check_soft_cap(x, N, random_uniform() * cap, cap);
        release_buffers();
    }
    free(x);
}
END_TEST

START_TEST(soft_cap_of_special_values)
{
    describe("soft_cap of special values");
    const float x[] = {0, -0.0f, -INFINITY, INFINITY, NAN, FLT_MAX, -FLT_MAX, FLT_TRUE_MIN, -FLT_MIN, 1e-30f};
    const size_t n = sizeof x / sizeof *x;
    const float adds[] = {0, 1, -INFINITY, INFINITY, NAN};
    for (size_t i = 0; i < sizeof adds / sizeof *adds; i++) {
        check_soft_cap(x, n, adds[i], 50);
        check_soft_cap(x, n, adds[i], 1e30f);
        release_buffers();
    }
    float ends[] = {-INFINITY, INFINITY, -1e4f, 1e4f};
    kernels.soft_cap(ends, 4, 0, 30);
    for (int i = 0; i < 4; i++)
        if (ends[i] != (i % 2 ? 30 : -30)) report_failure("the cap of an end is %a", (double)ends[i]);
}
END_TEST

TCase *softmax_tests(void)
{
    TCase *const tests = tcase_create("softmax");
    tcase_add_loop_test(tests, softmax_of_every_length, 0, KINDS);
    tcase_add_loop_test(tests, masses_of_every_length, 0, KINDS);
    tcase_add_test(tests, exp_over_its_range);
    tcase_add_test(tests, exp_of_special_values);
    tcase_add_loop_test(tests, soft_caps_of_every_length, 0, KINDS);
    tcase_add_test(tests, soft_cap_over_its_range);
    tcase_add_test(tests, soft_cap_of_special_values);
    return tests;
}
