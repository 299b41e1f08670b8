/* Stage 1 and nearest centroid.
 * cluster_logits: |error| <= 4 2^-24 (|base| + |scale x| + |half spread|); padding and the maximum exact
 * cluster_mass:   mass within 6 ulp; expm1 within 1e-5 relative or 1e-7 absolute, rank and error within that and 20 ulp
 *                 (or 0 below y = 2^-60); sums within (n + 4) 2^-24 of the sum of what was written
 * sum_at_least:   |error| <= (n + 4) 2^-24 sum |value|
 * nearest:        exact (one subtraction) */
#include "harness.h"
#include "oracle.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LONGEST = 700 };

static size_t next_length(size_t n)
{
    return n + (n < 100 ? 1 : 1 + random_below(80));
}

/* Sizes of clusters: one in five is padding. */
static void fill_sizes(float *size, size_t n)
{
    for (size_t i = 0; i < n; i++)
        size[i] = random_below(5) ? (float)(1 + random_below(64)) : 0;
}

START_TEST(cluster_logits_of_every_length)
{
    start_random();
    float x[LONGEST], size[LONGEST], spread[LONGEST];
    for (size_t n = 0; n < LONGEST; n = next_length(n)) {
        describe("cluster_logits of %zu clusters, contents %d", n, _i);
        fill(x, n, (contents)_i);
        fill_sizes(size, n);
        for (size_t i = 0; i < n; i++) {
            spread[i] = fabsf(random_uniform());
            if (size[i] == 0 && random_below(2))
                x[i] = NAN; /* whatever the padding holds */
        }
        const float base = random_uniform() * 10, scale = random_uniform(), half = fabsf(random_uniform()) * 5;
        float *results[2], largest[2];
        for (size_t run = 0; run < 2; run++) {
            const size_t shift = run ? random_shift(4) : 0;
            results[run] = place(x, n * sizeof *x, shift);
            largest[run] = kernels.cluster_logits(results[run], place(size, n * sizeof *size, shift),
                                                  place(spread, n * sizeof *spread, shift), n, base, scale, half);
        }
        expect_same("cluster_logits", results[0], results[1], n * sizeof *x);
        float expected_largest = -INFINITY;
        for (size_t i = 0; i < n; i++) {
            const double a = base, b = (double)scale * x[i], c = (double)half * spread[i];
            if (size[i] > 0)
                expect_near("logit", i, results[0][i], a + b + c, 4 * 0x1p-24 * (fabs(a) + fabs(b) + fabs(c)));
            else if (results[0][i] != -INFINITY)
                report_failure("padding %zu is %g", i, (double)results[0][i]);
            if (results[0][i] > expected_largest)
                expected_largest = results[0][i];
        }
        if (largest[0] != expected_largest || largest[1] != expected_largest)
            report_failure("largest is %a and %a, expected %a", (double)largest[0], (double)largest[1], (double)expected_largest);
        release_buffers();
    }
}
END_TEST

static void check_cluster_mass(const float *x, const float *size, const float *spread, size_t n, float max,
                               float variance)
{
    const size_t bytes = n * sizeof *x;
    float *mass[2], *error[2], *rank[2], *sums[2];
    for (size_t run = 0; run < 2; run++) {
        const size_t shift = run ? random_shift(4) : 0;
        mass[run] = place(NULL, bytes, shift);
        error[run] = place(NULL, bytes, shift);
        rank[run] = place(NULL, bytes, shift);
        sums[run] = place(NULL, 2 * sizeof(float), shift);
        kernels.cluster_mass(place(x, bytes, shift), place(size, bytes, shift), place(spread, bytes, shift), n, max,
                             variance, mass[run], error[run], rank[run], sums[run]);
    }
    expect_same("mass", mass[0], mass[1], bytes);
    expect_same("error", error[0], error[1], bytes);
    expect_same("rank", rank[0], rank[1], bytes);
    expect_same("sums", sums[0], sums[1], 2 * sizeof(float));
    double total[2] = {0, 0};
    for (size_t i = 0; i < n; i++) {
        const oracle_cluster c = oracle_cluster_mass(x[i], size[i], spread[i], max, variance);
        const double s = size[i] > 0 ? size[i] : 0;
        total[0] += mass[0][i];
        total[1] += error[0][i];
        expect_near("mass", i, mass[0][i], c.mass, 6 * 0x1p-23 * c.mass + s * exp(-87));
        const double growth = fmax(1e-5 * fabs(c.growth), 1e-7);
        const double tolerance = c.y * c.y * s * growth + 20 * 0x1p-23 * c.rank + (s + 1) * FLT_MIN;
        const double dropped = c.y < 0x1p-60 ? c.rank : 0;
        expect_near("rank", i, rank[0][i], c.rank, tolerance + dropped);
        expect_near("error", i, error[0][i], c.error, (s + 1) * (tolerance + dropped));
    }
    for (size_t i = 0; i < 2; i++)
        expect_near("sums", i, sums[0][i], total[i], ((double)n + 4) * 0x1p-24 * total[i]);
    release_buffers();
}

START_TEST(cluster_mass_of_every_length)
{
    start_random();
    float x[LONGEST], size[LONGEST], spread[LONGEST];
    for (size_t n = 0; n < LONGEST; n = next_length(n)) {
        describe("cluster_mass of %zu clusters, kind %d", n, _i);
        fill_sizes(size, n);
        for (size_t i = 0; i < n; i++) {
            x[i] = _i == 3 ? -INFINITY : _i == 1 ? 1e4f * random_uniform() : 30 * random_uniform();
            spread[i] = _i == 1   ? fabsf(random_uniform()) * 200                             /* beyond the cap */
                      : _i == 2 ? ldexpf(fabsf(random_uniform()), -(int)random_below(60)) /* expm1 of tiny numbers */
                                  : fabsf(random_uniform());
            if (_i == 4 && !random_below(n))
                *(random_below(2) ? x + i : spread + i) = NAN;
        }
        float max = -INFINITY;
        for (size_t i = 0; i < n; i++)
            if (x[i] > max)
                max = x[i];
        check_cluster_mass(x, size, spread, n, max, 1 + random_uniform());
    }
}
END_TEST

START_TEST(cluster_mass_never_overflows)
{
    describe("cluster_mass of a cluster of 1e9 tokens with a huge spread");
    const float x = 3, size = 1e9f, spread = 1e30f;
    check_cluster_mass(&x, &size, &spread, 1, 3, 1e8f);
    float mass, error, rank, sums[2];
    kernels.cluster_mass(&x, &size, &spread, 1, 3, 1e8f, &mass, &error, &rank, sums);
    if (!isfinite(mass) || !isfinite(error) || !isfinite(rank))
        report_failure("mass %g, error %g, rank %g", (double)mass, (double)error, (double)rank);
}
END_TEST

START_TEST(sum_at_least_of_every_length)
{
    start_random();
    float rank[LONGEST], value[LONGEST];
    static const float thresholds[] = {0, 0.3f, -0.5f, 2, INFINITY, -INFINITY, NAN};
    for (size_t n = 0; n < LONGEST; n = next_length(n))
        for (size_t t = 0; t < sizeof thresholds / sizeof *thresholds; t++) {
            const float threshold = t == 1 && n ? rank[n / 2] : thresholds[t]; /* an equal rank counts */
            describe("sum_at_least of %zu, threshold %g, contents %d", n, (double)threshold, _i);
            fill(rank, n, (contents)_i);
            fill(value, n, ORDINARY);
            double sum = 0, magnitude = 0;
            for (size_t i = 0; i < n; i++)
                if (!(rank[i] < threshold)) {
                    sum += value[i];
                    magnitude += fabs(value[i]);
                } else if (!random_below(4)) {
                    value[i] = NAN; /* must not be touched: not even times zero */
                }
            float got[2];
            for (size_t run = 0; run < 2; run++) {
                const size_t shift = run ? random_shift(4) : 0;
                got[run] = kernels.sum_at_least(place(rank, n * sizeof *rank, shift),
                                                place(value, n * sizeof *value, shift), n, threshold);
            }
            expect_same("sum_at_least", got, got + 1, sizeof *got);
            expect_near("sum", 0, got[0], sum, ((double)n + 4) * 0x1p-24 * magnitude);
            release_buffers();
        }
}
END_TEST

START_TEST(nearest_of_every_length)
{
    start_random();
    float dot[LONGEST], half_norm[LONGEST];
    for (size_t round = 0; round < 8; round++)
        for (size_t n = 1; n < LONGEST; n = next_length(n)) {
            describe("nearest of %zu, contents %d", n, _i);
            fill(dot, n, (contents)_i);
            fill(half_norm, n, _i == SPECIAL ? ORDINARY : (contents)_i);
            if (round % 2) /* many ties */
                for (size_t i = 0; i < n; i++) {
                    dot[i] = (float)(int)(dot[i] * 2);
                    half_norm[i] = 0.5f;
                }
            if (round == 7)
                for (size_t i = 0; i < n; i++)
                    dot[i] = random_below(2) ? NAN : -INFINITY;
            size_t expected = 0;
            float largest = -INFINITY;
            for (size_t i = 0; i < n; i++)
                if (dot[i] - half_norm[i] > largest) {
                    largest = dot[i] - half_norm[i];
                    expected = i;
                }
            for (size_t run = 0; run < 2; run++) {
                const size_t shift = run ? random_shift(4) : 0;
                float *const best = place(NULL, sizeof *best, shift);
                const size_t got = kernels.nearest(place(dot, n * sizeof *dot, shift),
                                                   place(half_norm, n * sizeof *half_norm, shift), n, best);
                if (got != expected || *best != largest)
                    report_failure("nearest is %zu with %a, expected %zu with %a", got, (double)*best, expected, (double)largest);
            }
            release_buffers();
        }
}
END_TEST

TCase *select_tests(void)
{
    TCase *const tests = tcase_create("select");
    tcase_add_loop_test(tests, cluster_logits_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, cluster_mass_of_every_length, 0, 5);
    tcase_add_test(tests, cluster_mass_never_overflows);
    tcase_add_loop_test(tests, sum_at_least_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, nearest_of_every_length, 0, CONTENTS_COUNT);
    return tests;
}
