/* score_panels:   |error| <= (d + 4) 2^-24 |step| sum_j |q_j c_j|, the bound of d additions and a product, and where queries
 *                 are rounded 2^-16 |step| max_j |q_j| sum_j |c_j|
 * weighted_means: |error| <= (n + 2) 2^-24 (|acc| + sum_i |w_i row_i|) */
#include "harness.h"
#include "oracle.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Byte of centroid i, dimension j. */
static size_t at(size_t i, size_t j, size_t d)
{
    return i / DP_PANEL * dp_panel_bytes(d) + j / 4 * 64 + i % DP_PANEL * 4 + j % 4;
}

static int8_t random_byte(void)
{
    return (int8_t)((int)random_below(255) - 127);
}

static bool rounds_queries(void)
{
    return strstr(table_name, "vnni") || strstr(table_name, "dotprod");
}

static void check_scores(size_t heads, size_t d, size_t n_panels, contents kind)
{
    const size_t n = n_panels * DP_PANEL, out_stride = n + random_below(20), panel_bytes = n_panels * dp_panel_bytes(d);
    const size_t out_bytes = (heads ? (heads - 1) * out_stride + n : 0) * sizeof(float);
    float *const q = allocate(heads * d * sizeof *q), *const steps = allocate(n * sizeof *steps);
    int8_t *const panels = allocate(panel_bytes);
    fill(q, heads * d, kind);
    fill(steps, n, kind);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < d; j++) panels[at(i, j, d)] = random_byte();
        memcpy(panels + i / DP_PANEL * dp_panel_bytes(d) + DP_PANEL * d + i % DP_PANEL * sizeof *steps, steps + i,
               sizeof *steps);
    }
    float *results[2];
    for (size_t run = 0; run < 2; run++) {
        const size_t shift = run ? random_shift(4) : 0;
        results[run] = place(NULL, out_bytes, shift);
        kernels.score_panels(place(q, heads * d * sizeof *q, shift), heads, d,
                             place(panels, panel_bytes, run * 64) /* contract: 64-byte aligned */, n_panels,
                             results[run], out_stride);
    }
    expect_same("score_panels", results[0], results[1], out_bytes);
    for (size_t h = 0; h < heads; h++) {
        double largest = 0;
        for (size_t j = 0; j < d && rounds_queries(); j++) largest = fmax(largest, fabs((double)q[h * d + j]));
        for (size_t i = 0; i < n; i++) {
            double sum = 0, magnitude = 0, rounding = 0;
            for (size_t j = 0; j < d; j++) {
                const double term = (double)q[h * d + j] * panels[at(i, j, d)];
                sum += term;
                magnitude += fabs(term);
                rounding += 0x1p-16 * largest * abs(panels[at(i, j, d)]);
            }
            const double step = steps[i];
            expect_near("score", h * out_stride + i, results[0][h * out_stride + i], step * sum,
                        ((double)d + 4) * (fabs(step) * (magnitude * 0x1p-24 + FLT_TRUE_MIN) + FLT_TRUE_MIN) +
                            fabs(step) * rounding);
        }
        if (h + 1 < heads)
            expect_untouched("gap of out", results[0] + h * out_stride + n, (out_stride - n) * sizeof(float));
    }
    release_buffers();
}

START_TEST(scores_of_all_shapes)
{
    static const size_t dims[] = {4, 8, 12, 16, 64, 80, 124, 128, 256, 512};
    const contents kind = (contents)_i;
    start_random();
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (size_t heads = 0; heads <= 18; heads++) {
            const size_t counted = heads == 17 ? 33 : heads == 18 ? 24 : heads;
            const size_t n_panels = random_below(10);
            describe("score_panels heads %zu d %zu panels %zu contents %d", counted, dims[i], n_panels, _i);
            check_scores(counted, dims[i], n_panels, kind);
        }
}
END_TEST

static void check_means(size_t heads, size_t d, size_t n, contents kind)
{
    const size_t n_rows = n + random_below(9) + 1, w_stride = n + random_below(5),
                 acc_bytes = heads * d * sizeof(float);
    const size_t w_bytes = (heads ? (heads - 1) * w_stride + n : 0) * sizeof(float);
    float *const w = allocate(w_bytes), *const acc = allocate(acc_bytes);
    int8_t *const rows = allocate(n_rows * d);
    uint32_t *const index = allocate(n * sizeof *index);
    fill(w, w_bytes / sizeof *w, kind);
    fill(acc, heads * d, kind == SPECIAL ? ORDINARY : kind);
    for (size_t i = 0; i < n_rows * d; i++) rows[i] = random_byte();
    for (size_t i = 0; i < n; i++) index[i] = (uint32_t)random_below(n_rows);
    if (n) index[n / 2] = (uint32_t)n_rows - 1; /* up to the guard */
    float *results[2];
    for (size_t run = 0; run < 2; run++) {
        const size_t shift = run ? random_shift(4) : 0;
        results[run] = place(acc, acc_bytes, shift);
        const int8_t *const placed = place(rows, n_rows * d, run * random_shift(1));
        const size_t ahead = run ? random_below(2 * n + 2) : 0, listed = (n + ahead) * sizeof(dp_row);
        dp_row *const list = allocate(listed);
        for (size_t i = 0; i < n; i++) list[i] = dp_row_at(placed + index[i] * d);
        for (size_t i = 0; i < ahead; i++) list[n + i] = dp_row_at((const void *)(uintptr_t)(64 * i)); /* nobody's memory */
        kernels.weighted_means(place(w, w_bytes, shift), w_stride, heads, place(list, listed, run * 8), n, ahead, d,
                               results[run]);
    }
    expect_same("weighted_means", results[0], results[1], acc_bytes);
    for (size_t h = 0; h < heads; h++)
        for (size_t j = 0; j < d; j++) {
            double sum = acc[h * d + j], magnitude = fabs(sum);
            for (size_t i = 0; i < n; i++) {
                const double term = (double)w[h * w_stride + i] * rows[index[i] * d + j];
                sum += term;
                magnitude += fabs(term);
            }
            expect_near("mean", h * d + j, results[0][h * d + j], sum,
                        ((double)n + 2) * (magnitude * 0x1p-24 + FLT_TRUE_MIN));
        }
    release_buffers();
}

START_TEST(means_of_all_shapes)
{
    static const size_t dims[] = {8, 16, 24, 64, 80, 128, 136, 512};
    start_random();
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (size_t heads = 0; heads <= 10; heads++) {
            const size_t counted = heads == 10 ? 33 : heads, n = random_below(4) ? random_below(70) : random_below(3);
            describe("weighted_means heads %zu d %zu rows %zu contents %d", counted, dims[i], n, _i);
            check_means(counted, dims[i], n, (contents)_i);
        }
}
END_TEST

TCase *scores_tests(void)
{
    TCase *const tests = tcase_create("scores");
    tcase_add_loop_test(tests, scores_of_all_shapes, 0, CONTENTS_COUNT);
    tcase_add_loop_test(tests, means_of_all_shapes, 0, CONTENTS_COUNT);
    return tests;
}
