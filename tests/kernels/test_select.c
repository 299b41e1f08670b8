/* Stage 1 and nearest centroid.
 * cluster_logits: |error| <= 8 2^-24 (|base| + |scale x| + sigma limit + sigma^2 / 2); padding and the maximum exact
 * cluster_mass:   mass within 6 ulp; expm1 within 1e-5 relative or 1e-7 absolute, error within that and 20 ulp (or 0
 *                 below y = 2^-60); the sum within (n + 4) 2^-24 of the sum of what was written
 * keep_clusters:  flags exact, joint within 2 ulp of the larger operand
 * list_at_least:  exact
 * sum_at_least:   |error| <= (n + 4) 2^-24 sum |value|
 * nearest:        exact (one subtraction)
 * nearest_in_bytes: within 4 2^-24 (|product| + |half_norm|) of the best; of equals the first */
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

/* Rounds to what bf16 holds, in place and into bits. */
static void round_to_bf16(float *x, uint16_t *bits, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        oracle_store(bits, i, x[i], DP_BF16);
        x[i] = (float)oracle_element(bits, i, DP_BF16);
    }
}

START_TEST(cluster_logits_of_every_length)
{
    start_random();
    float x[LONGEST], size[LONGEST], spread[LONGEST], limit[LONGEST];
    uint16_t size_bits[LONGEST], spread_bits[LONGEST], limit_bits[LONGEST];
    for (size_t n = 0; n < LONGEST; n = next_length(n)) {
        describe("cluster_logits of %zu clusters, contents %d", n, _i);
        fill(x, n, (contents)_i);
        fill_sizes(size, n);
        for (size_t i = 0; i < n; i++) {
            spread[i] = fabsf(random_uniform());
            limit[i] = size[i] > 0 ? sqrtf(2 * logf(size[i])) : 0; /* on both sides of sigma */
            if (size[i] == 0 && random_below(2))
                x[i] = NAN; /* whatever the padding holds */
        }
        round_to_bf16(size, size_bits, n);
        round_to_bf16(spread, spread_bits, n);
        round_to_bf16(limit, limit_bits, n);
        const float base = random_uniform() * 10, scale = random_uniform(), variance = fabsf(random_uniform()) * 20;
        float *results[2], largest[2];
        for (size_t run = 0; run < 2; run++) {
            const size_t shift = run ? random_shift(4) : 0;
            results[run] = place(run ? NULL : x, n * sizeof *x, shift); /* in place, and not */
            largest[run] = kernels.cluster_logits(run ? place(x, n * sizeof *x, shift) : results[run], place(size_bits, n * sizeof *size_bits, shift),
                                                  place(spread_bits, n * sizeof *spread_bits, shift),
                                                  place(limit_bits, n * sizeof *limit_bits, shift), n, base, scale, variance,
                                                  results[run]);
        }
        expect_same("cluster_logits", results[0], results[1], n * sizeof *x);
        float expected_largest = -INFINITY;
        for (size_t i = 0; i < n; i++) {
            const double expected = oracle_cluster_logit(x[i], spread[i], limit[i], base, scale, variance);
            const double sigma = sqrt((double)variance * spread[i]);
            const double magnitude =
                fabs((double)base) + fabs((double)scale * x[i]) + sigma * limit[i] + sigma * sigma / 2;
            if (size[i] > 0)
                expect_near("logit", i, results[0][i], expected, 8 * 0x1p-24 * magnitude);
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

static void check_cluster_mass(const float *x, float *size, float *spread, size_t n, float max, float variance)
{
    const size_t bytes = n * sizeof *x;
    float *mass[2], *error[2], sum[2];
    uint16_t size_bits[LONGEST], spread_bits[LONGEST];
    round_to_bf16(size, size_bits, n);
    round_to_bf16(spread, spread_bits, n);
    for (size_t run = 0; run < 2; run++) { /* the second time in place */
        const size_t shift = run ? random_shift(4) : 0;
        float *const logits = place(x, bytes, shift);
        mass[run] = run ? logits : place(NULL, bytes, shift);
        error[run] = place(NULL, bytes, shift);
        sum[run] = kernels.cluster_mass(logits, place(size_bits, n * sizeof *size_bits, shift),
                                        place(spread_bits, n * sizeof *spread_bits, shift), n, max, variance, mass[run], error[run]);
    }
    expect_same("mass", mass[0], mass[1], bytes);
    expect_same("error", error[0], error[1], bytes);
    expect_same("sum", sum, sum + 1, sizeof *sum);
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        const oracle_cluster c = oracle_cluster_mass(x[i], size[i], spread[i], max, variance);
        const double s = size[i] > 0 ? size[i] : 0;
        total += mass[0][i];
        expect_near("mass", i, mass[0][i], c.mass, 6 * 0x1p-23 * c.mass + s * exp(-87));
        const double growth = fmax(1e-5 * fabs(c.growth), 1e-7);
        const double dropped = c.y < 0x1p-60 ? c.error : 0;
        expect_near("error", i, error[0][i], c.error,
                    c.mass * c.mass * growth + 20 * 0x1p-23 * c.error + (s + 1) * FLT_MIN + dropped);
    }
    expect_near("sum", 0, sum[0], total, ((double)n + 4) * 0x1p-24 * total);
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
            spread[i] = _i == 1   ? fabsf(random_uniform()) * 200                             /* beyond the bound */
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
    const float x = 3;
    float size = 1e9f, spread = 1e30f, mass, error;
    uint16_t size_bits, spread_bits;
    check_cluster_mass(&x, &size, &spread, 1, 3, 1e8f);
    round_to_bf16(&size, &size_bits, 1);
    round_to_bf16(&spread, &spread_bits, 1);
    kernels.cluster_mass(&x, &size_bits, &spread_bits, 1, 3, 1e8f, &mass, &error);
    if (!isfinite(mass) || !isfinite(error))
        report_failure("mass %g, error %g", (double)mass, (double)error);
}
END_TEST

START_TEST(keep_clusters_of_every_length)
{
    start_random();
    float mass[LONGEST], error[LONGEST], joint[LONGEST];
    uint8_t flags[LONGEST];
    for (size_t n = 0; n < LONGEST; n = next_length(n)) {
        fill(mass, n, (contents)_i);
        fill(error, n, ORDINARY);
        fill(joint, n, ORDINARY);
        for (size_t i = 0; i < n; i++)
            flags[i] = (uint8_t)random_below(4);
        const float keep = n && random_below(2) ? mass[n / 2] : random_uniform(), weight = 7 * random_uniform();
        describe("keep_clusters of %zu, keep %g, contents %d", n, (double)keep, _i);
        float *sums[2];
        uint8_t *marks[2];
        for (size_t run = 0; run < 2; run++) {
            const size_t shift = run ? random_shift(4) : 0;
            sums[run] = place(joint, n * sizeof *joint, shift);
            marks[run] = place(flags, n, shift);
            kernels.keep_clusters(place(mass, n * sizeof *mass, shift), place(error, n * sizeof *error, shift), n, keep,
                                  weight, sums[run], marks[run]);
        }
        expect_same("joint", sums[0], sums[1], n * sizeof *joint);
        expect_same("flags", marks[0], marks[1], n);
        for (size_t i = 0; i < n; i++) {
            const int kept = !(mass[i] < keep);
            const double added = (double)weight * error[i];
            if (marks[0][i] != (flags[i] | kept))
                report_failure("flag %zu is %d, was %d, kept %d", i, marks[0][i], flags[i], kept);
            expect_near("joint", i, sums[0][i], joint[i] + added, 0x1p-22 * (fabs(added) + fabsf(joint[i])));
        }
        release_buffers();
    }
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

/* In place and elsewhere, with values and without. */
START_TEST(list_at_least_of_every_length)
{
    start_random();
    float rank[LONGEST], value[LONGEST], expected[2][LONGEST];
    static const float thresholds[] = {0, 0.3f, -0.5f, 0.97f, 2, INFINITY, -INFINITY, NAN};
    for (size_t n = 0; n < LONGEST; n = next_length(n))
        for (size_t t = 0; t < sizeof thresholds / sizeof *thresholds; t++) {
            const float threshold = t == 1 && n ? rank[n / 2] : thresholds[t];
            describe("list_at_least of %zu, threshold %g, contents %d", n, (double)threshold, _i);
            fill(rank, n, (contents)_i);
            fill(value, n, (contents)_i);
            size_t count = 0;
            for (size_t i = 0; i < n; i++)
                if (!(rank[i] < threshold)) {
                    expected[0][count] = rank[i];
                    expected[1][count++] = value[i];
                }
            for (size_t run = 0; run < 4; run++) {
                const size_t bytes = n * sizeof *rank, shift = random_shift(4);
                const int in_place = run % 2, with_values = run / 2;
                float *const r = place(rank, bytes, shift), *const v = with_values ? place(value, bytes, shift) : NULL;
                float *const out_rank = in_place ? r : place(NULL, bytes, 0);
                float *const out_value = !v || in_place ? v : place(NULL, bytes, 0);
                const size_t got = kernels.list_at_least(r, v, n, threshold, out_rank, out_value);
                if (got != count) report_failure("%zu are listed, expected %zu", got, count);
                if (count && memcmp(out_rank, expected[0], count * sizeof *rank)) report_failure("ranks differ");
                if (count && v && memcmp(out_value, expected[1], count * sizeof *rank)) report_failure("values differ");
                if (!in_place && n && memcmp(r, rank, bytes)) report_failure("ranks were changed");
            }
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
                    dot[i] = truncf(dot[i] * 2);
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

enum { MOST_POINTS = 20 };

/* Checks what nearest_in_bytes found for one point among n values; `tied`: values are exact. */
static void check_nearest(uint32_t got, const double *value, const float *half_norm, size_t n, int tied)
{
    double largest = -INFINITY;
    size_t expected = 0;
    for (size_t i = 0; i < n; i++)
        if (value[i] > largest) largest = value[i], expected = i;
    if (got >= n) {
        report_failure("the nearest is %u", got);
        return;
    }
    if (got == expected) return;
    const double slack = 0x1p-22 * (fabs(value[got] + (double)half_norm[got]) + fabs((double)half_norm[got]) +
                                    fabs(largest + (double)half_norm[expected]) + fabs((double)half_norm[expected]));
    /* ties, and values that are none or without end, leave no choice but where f32 overflows */
    const int close = isfinite(largest) ? !tied && value[got] >= largest - slack - 0x1p-140
                                        : largest > 0 && value[got] > (double)FLT_MAX;
    if (!close) report_failure("the nearest is %u with %a, expected %zu with %a", got, value[got], expected, largest);
}

/* `exact`: few different values, all whole numbers. */
static void check_nearest_in_bytes(size_t n, size_t n_means, size_t d, contents kind, int exact)
{
    const size_t panel_bytes = (n_means + DP_PANEL - 1) / DP_PANEL * DP_PANEL * d;
    int8_t *const x = allocate(n * d);
    uint8_t *const panels = allocate(panel_bytes);
    float *const scale = allocate(n * sizeof *scale), *const step = allocate(n_means * sizeof *step);
    float *const half_norm = allocate(n_means * sizeof *half_norm);
    for (size_t i = 0; i < n * d; i++) x[i] = (int8_t)(exact ? (int)random_below(2) : (int)random_below(256) - 128);
    for (size_t i = 0; i < panel_bytes; i++) panels[i] = (uint8_t)(exact ? 128 + random_below(2) : random_below(256));
    fill(scale, n, kind);
    fill(step, n_means, kind);
    fill(half_norm, n_means, kind == SPECIAL ? ORDINARY : kind);
    if (exact) {
        for (size_t i = 0; i < n; i++) scale[i] = 1;
        for (size_t i = 0; i < n_means; i++) step[i] = 1, half_norm[i] = 0.5f;
    }
    const size_t out_bytes = n * sizeof(uint32_t);
    uint32_t *results[2];
    for (size_t run = 0; run < 2; run++) {
        const size_t shift = run ? random_shift(4) : 0;
        results[run] = place(NULL, out_bytes, shift);
        kernels.nearest_in_bytes(place(x, n * d, run ? random_below(64) : 0), place(scale, n * sizeof *scale, shift), n,
                                 place(panels, panel_bytes, run ? random_below(64) : 0),
                                 place(step, n_means * sizeof *step, shift),
                                 place(half_norm, n_means * sizeof *half_norm, shift), n_means, d, results[run]);
    }
    expect_same("nearest_in_bytes", results[0], results[1], out_bytes);
    for (size_t i = 0; i < n; i++) {
        double value[LONGEST];
        for (size_t c = 0; c < n_means; c++) {
            int32_t dot = 0;
            for (size_t j = 0; j < d; j++)
                dot += x[i * d + j] * (panels[c / DP_PANEL * DP_PANEL * d + j / 4 * 64 + c % DP_PANEL * 4 + j % 4] - 128);
            value[c] = (double)scale[i] * (double)(step[c] * (float)dot) - (double)half_norm[c];
        }
        check_nearest(results[0][i], value, half_norm, n_means, exact);
    }
    release_buffers();
}

START_TEST(nearest_in_bytes_of_every_shape)
{
    start_random();
    if (!kernels.nearest_in_bytes) return;
    static const size_t dims[] = {8, 16, 24, 56, 64, 72, 128, 136, 256, 504, 512};
    for (size_t k = 0; k < sizeof dims / sizeof *dims; k++)
        for (size_t n_means = 1; n_means < 200; n_means += 1 + random_below(15)) {
            const size_t n = random_below(MOST_POINTS + 1);
            for (int exact = 0; exact < 2; exact++) {
                describe("nearest_in_bytes of %zu points, %zu means, d %zu, contents %d, exact %d", n, n_means, dims[k], _i, exact);
                check_nearest_in_bytes(n, n_means, dims[k], (contents)_i, exact);
            }
        }
}
END_TEST

TCase *select_tests(void)
{
    TCase *const tests = tcase_create("select");
    tcase_add_loop_test(tests, cluster_logits_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, cluster_mass_of_every_length, 0, 5);
    tcase_add_test(tests, cluster_mass_never_overflows);
    tcase_add_loop_test(tests, keep_clusters_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, sum_at_least_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, list_at_least_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, nearest_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, nearest_in_bytes_of_every_shape, 0, CONTENTS_COUNT);
    return tests;
}
