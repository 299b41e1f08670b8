/* max: exact. exp_sum: each exponential within 4 ulp (or 0 below an argument of -87), the sum within
 * (n + 4) 2^-24 of the sum of the exponentials that were written, which are not negative. */
#include "harness.h"
#include "oracle.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

static const char *const kinds[] = {"ordinary", "wide", "denormal", "special", "logits of 1e4", "all -Inf",
                                    "around -87", "overflow"};
enum { LOGITS = CONTENTS_COUNT, MASKED, UNDERFLOWING, OVERFLOWING, KINDS };

static void fill_logits(float *x, size_t n, int kind)
{
    if (kind < CONTENTS_COUNT) {
        fill(x, n, (contents)kind);
        return;
    }
    for (size_t i = 0; i < n; i++)
        x[i] = kind == LOGITS         ? random_uniform() * 1e4f
             : kind == MASKED         ? -INFINITY
             : kind == UNDERFLOWING   ? -87 + random_uniform() * 20
                                      : 88 + random_uniform() * 2;
}

static float reference_max(const float *x, size_t n)
{
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++)
        if (!isnan(x[i]) && x[i] > largest)
            largest = x[i];
    return largest;
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
        const double exact = oracle_exp(x[i], max), got = results[0][i];
        sum += got;
        if (exact < exp(-87) && got == 0)
            continue;
        int exponent;
        frexp(fmin(exact, FLT_MAX), &exponent); /* exact is in [2^(exponent - 1), 2^exponent) */
        expect_near("exp", i, results[0][i], exact, 4 * ldexp(1, exponent < -125 ? -149 : exponent - 24));
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
    const float x[] = {0, -0.0f, -INFINITY, INFINITY, NAN, 1, -1e30f, 1e30f, FLT_MAX, -FLT_MAX, FLT_TRUE_MIN, -104, -87};
    const size_t n = sizeof x / sizeof *x;
    check_exp_sum(x, n, 0);
    check_exp_sum(x, n, -INFINITY);
    check_exp_sum(x, n, INFINITY);
    check_exp_sum(x, n, NAN);
    release_buffers();
    float zeros[] = {0, -0.0f};
    kernels.exp_sum(zeros, 2, 0);
    if (zeros[0] != 1 || zeros[1] != 1)
        report_failure("exp(0) is %a", (double)zeros[0]);
}
END_TEST

TCase *softmax_tests(void)
{
    TCase *const tests = tcase_create("softmax");
    tcase_add_loop_test(tests, softmax_of_every_length, 0, KINDS);
    tcase_add_test(tests, exp_over_its_range);
    tcase_add_test(tests, exp_of_special_values);
    return tests;
}
