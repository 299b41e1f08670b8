/* Which clusters are worth looking at.
 * rank_clusters: rank within 4 ulp, joint exact
 * mark_ranked:   exact
 * mark_in_reach: exact, but where the two sides are within 2^-20 of each other
 * list_flagged:  exact
 * mean_weights:  weights exact, |error| of the sums <= (n + 4) 2^-24 of those of magnitudes */
#include "harness.h"
#include "oracle.h"

#include <math.h>

enum { LONGEST = 300 };

static size_t next_length(size_t n)
{
    return n + (n < 70 ? 1 : 1 + random_below(80));
}

/* Sizes of clusters in bf16: padding, single tokens and more. */
static void fill_sizes(float *size, uint16_t *bits, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const size_t kind = random_below(4);
        size[i] = kind < 2 ? (float)kind : (float)(1 + random_below(256));
        oracle_store(bits, i, size[i], DP_BF16);
    }
}

static void fill_flags(uint8_t *flags, size_t n)
{
    for (size_t i = 0; i < n; i++) flags[i] = (uint8_t)random_below(256);
}

START_TEST(rank_clusters_of_every_length)
{
    start_random();
    float joint[LONGEST], size[LONGEST];
    uint16_t bits[LONGEST];
    for (size_t n = 0; n < LONGEST; n = next_length(n)) {
        describe("rank_clusters of %zu clusters, contents %d", n, _i);
        fill(joint, n, (contents)_i);
        fill_sizes(size, bits, n);
        const float read = (float)random_below(2), look = 0.01f + fabsf(random_uniform()), most = fabsf(random_uniform());
        float *sums[2], *ranks[2];
        for (size_t run = 0; run < 2; run++) {
            const size_t shift = run ? random_shift(2) : 0;
            sums[run] = place(joint, n * sizeof *joint, 2 * shift);
            ranks[run] = place(NULL, n * sizeof **ranks, 2 * shift);
            kernels.rank_clusters(sums[run], place(bits, n * sizeof *bits, shift), n, read, look, most, ranks[run]);
        }
        expect_same("joint", sums[0], sums[1], n * sizeof *joint);
        expect_same("rank", ranks[0], ranks[1], n * sizeof *joint);
        for (size_t i = 0; i < n; i++) {
            const double cost = size[i] > 1 ? (double)read + (double)look * (double)size[i] : 1;
            const double rank = (double)joint[i] / cost;
            expect_near("rank", i, ranks[0][i], rank, 0x1p-22 * fabs(rank) + 0x1p-149);
            expect_near("joint", i, sums[0][i], joint[i] <= most ? joint[i] : most, 0);
        }
        release_buffers();
    }
}
END_TEST

START_TEST(mark_ranked_of_every_length)
{
    start_random();
    float rank[LONGEST], size[LONGEST];
    uint16_t bits[LONGEST];
    uint8_t flags[LONGEST];
    for (size_t n = 0; n < LONGEST; n = next_length(n)) {
        fill(rank, n, (contents)_i);
        fill_sizes(size, bits, n);
        fill_flags(flags, n);
        static const float thresholds[] = {0, -1, INFINITY, NAN};
        const size_t kind = random_below(6);
        const float threshold = kind < 4 ? thresholds[kind] : n ? rank[n / 2] : 1; /* an equal rank counts */
        describe("mark_ranked of %zu clusters, threshold %g, contents %d", n, (double)threshold, _i);
        uint8_t *marks[2];
        for (size_t run = 0; run < 2; run++) {
            const size_t shift = run ? random_shift(2) : 0;
            marks[run] = place(flags, n, shift);
            kernels.mark_ranked(place(rank, n * sizeof *rank, 2 * shift), place(bits, n * sizeof *bits, shift), n,
                                threshold, 3, 4, marks[run]);
        }
        expect_same("flags", marks[0], marks[1], n);
        for (size_t i = 0; i < n; i++) {
            const int more = rank[i] >= threshold && rank[i] > 0 ? (size[i] > 1 ? 4 : 3) : 0;
            if (marks[0][i] != (flags[i] | more))
                report_failure("flag %zu is %d, was %d, should have %d", i, marks[0][i], flags[i], more);
        }
        release_buffers();
    }
}
END_TEST

START_TEST(mark_in_reach_of_every_length)
{
    start_random();
    float score[LONGEST], mass[LONGEST], spread[LONGEST];
    uint16_t bits[LONGEST];
    uint8_t flags[LONGEST];
    size_t reached = 0, passed = 0;
    for (size_t n = 0; n < LONGEST; n = next_length(n)) {
        fill(score, n, (contents)_i);
        fill(mass, n, (contents)_i);
        fill_flags(flags, n);
        for (size_t i = 0; i < n; i++) {
            oracle_store(bits, i, fabsf(random_uniform()), DP_BF16);
            spread[i] = (float)oracle_element(bits, i, DP_BF16);
        }
        const float scale = random_uniform(), limit = random_below(8) ? random_uniform() : INFINITY,
                    variance = random_below(8) ? fabsf(random_uniform()) : 0, heavy = fabsf(random_uniform());
        describe("mark_in_reach of %zu clusters, limit %g, variance %g, contents %d", n, (double)limit,
                 (double)variance, _i);
        uint8_t *marks[2];
        for (size_t run = 0; run < 2; run++) {
            const size_t shift = run ? random_shift(2) : 0;
            marks[run] = place(flags, n, shift);
            kernels.mark_in_reach(place(score, n * sizeof *score, 2 * shift), place(mass, n * sizeof *mass, 2 * shift),
                                  place(bits, n * sizeof *bits, shift), n, scale, limit, variance, heavy, 16,
                                  marks[run]);
        }
        expect_same("flags", marks[0], marks[1], n);
        for (size_t i = 0; i < n; i++) {
            const double above = (double)limit - (double)scale * score[i], span = (double)variance * spread[i];
            /* rounding `above` may put it on either side */
            const double slack = 0x1p-20 * (fabs((double)limit) + fabs((double)scale * score[i]));
            const int far = above > 0 && above * above > span && mass[i] <= heavy;
            const int sure = isinf(limit) || fabs(above - sqrt(span)) > slack || !(mass[i] <= heavy);
            const int got = marks[0][i], expected = flags[i] | (far ? 0 : 16);
            if (got != expected && (sure || (got | 16) != (expected | 16)))
                report_failure("flag %zu is %d, should be %d: above %g, span %g", i, got, expected, above, span);
            reached += !far;
            passed += far;
        }
        release_buffers();
    }
    ck_assert_uint_gt(reached, 500);
    ck_assert_uint_gt(passed, 500);
}
END_TEST

START_TEST(list_flagged_of_every_length)
{
    start_random();
    uint8_t flags[LONGEST];
    for (size_t n = 0; n < LONGEST; n = next_length(n)) {
        fill_flags(flags, n);
        uint8_t mask = (uint8_t)random_below(256), value = (uint8_t)random_below(256) & mask;
        const size_t kind = random_below(4); /* none of them, all of them, few of them, whatever they are */
        if (kind == 0) mask = 1, value = 3;
        if (kind == 1) mask = value = 0;
        if (kind == 2) mask = 24, value = 8;
        describe("list_flagged of %zu flags, mask %d, value %d", n, mask, value);
        uint16_t expected[LONGEST], *lists[2];
        size_t count = 0;
        for (size_t i = 0; i < n; i++)
            if ((flags[i] & mask) == value) expected[count++] = (uint16_t)i;
        for (size_t run = 0; run < 2; run++) {
            const size_t shift = run ? random_shift(2) : 0;
            lists[run] = place(NULL, (count + DP_LIST_SLACK) * sizeof *expected, shift);
            const size_t got = kernels.list_flagged(place(flags, n, shift), n, mask, value, lists[run]);
            if (got != count) report_failure("%zu are listed, not %zu", got, count);
            expect_same("list", lists[run], expected, count * sizeof *expected);
        }
        release_buffers();
    }
}
END_TEST

START_TEST(mean_weights_of_every_length)
{
    start_random();
    float mass[LONGEST], unit[LONGEST], part[LONGEST];
    uint16_t index[LONGEST];
    for (size_t n = 0; n < LONGEST; n = next_length(n)) {
        const size_t all = n + random_below(LONGEST - n) + 1;
        fill(mass, all, (contents)_i);
        fill(unit, n, (contents)_i);
        for (size_t i = 0; i < n; i++) {
            index[i] = (uint16_t)random_below(i % 3 ? all : n);
            part[i] = (float)random_below(2);
        }
        describe("mean_weights of %zu clusters, contents %d", n, _i);
        float *weights[2], sums[2][2] = {{0.5f, -1}, {0.5f, -1}};
        for (size_t run = 0; run < 2; run++) {
            const size_t shift = run ? random_shift(2) : 0;
            weights[run] = place(NULL, n * sizeof **weights, 2 * shift);
            kernels.mean_weights(place(mass, all * sizeof *mass, 2 * shift), place(index, n * sizeof *index, shift), n,
                                 place(unit, n * sizeof *unit, 2 * shift), place(part, n * sizeof *part, 2 * shift), weights[run],
                                 sums[run]);
        }
        expect_same("weights", weights[0], weights[1], n * sizeof **weights);
        expect_same("sums", sums[0], sums[1], sizeof *sums);
        double sum[2] = {0.5, -1}, magnitude[2] = {0.5, 1};
        for (size_t i = 0; i < n; i++) {
            const float m = mass[index[i]], w = m * unit[i];
            expect_near("weight", i, weights[0][i], (double)w, 0);
            sum[0] += (double)m;
            sum[1] += (double)(m * part[i]);
            magnitude[0] += fabs((double)m);
            magnitude[1] += fabs((double)(m * part[i]));
        }
        for (size_t j = 0; j < 2; j++)
            expect_near("sum", j, sums[0][j], sum[j], ((double)n + 4) * 0x1p-24 * magnitude[j] + 0x1p-149);
        release_buffers();
    }
}
END_TEST

TCase *rank_tests(void)
{
    TCase *const tests = tcase_create("rank");
    tcase_add_loop_test(tests, rank_clusters_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, mark_ranked_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, mark_in_reach_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_test(tests, list_flagged_of_every_length);
    tcase_add_loop_test(tests, mean_weights_of_every_length, 0, CONTENTS_COUNT);
    return tests;
}
