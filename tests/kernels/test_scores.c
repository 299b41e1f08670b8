/* score_panels: |error| <= (d + 2) 2^-24 sum_j |q_j c_j|, the bound of d additions in sequence. */
#include "harness.h"
#include "oracle.h"

#include <float.h>

static void check_scores(size_t heads, size_t d, size_t n_panels, contents kind)
{
    const size_t n = n_panels * DP_PANEL, out_stride = n + random_below(20);
    const size_t out_bytes = (heads ? (heads - 1) * out_stride + n : 0) * sizeof(float);
    float *const q = allocate(heads * d * sizeof *q), *const centroids = allocate(n * d * sizeof *centroids);
    uint16_t *const panels = allocate(n * d * sizeof *panels);
    fill(q, heads * d, kind == SPECIAL ? ORDINARY : kind);
    fill(centroids, n * d, kind);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++) {
            const size_t element = (j / 2) * 2 * DP_PANEL + i % DP_PANEL * 2 + j % 2;
            oracle_store(panels, i / DP_PANEL * DP_PANEL * d + element, centroids[i * d + j], DP_BF16);
        }

    float *results[2];
    for (size_t run = 0; run < 2; run++) {
        const size_t shift = run ? random_shift(4) : 0;
        results[run] = place(NULL, out_bytes, shift);
        kernels.score_panels(place(q, heads * d * sizeof *q, shift), heads, d,
                             place(panels, n * d * sizeof *panels, run * 64) /* contract: 64-byte aligned */, n_panels,
                             results[run], out_stride);
    }
    expect_same("score_panels", results[0], results[1], out_bytes);
    for (size_t h = 0; h < heads; h++) {
        for (size_t i = 0; i < n; i++) {
            oracle_sum sum = {0, 0};
            for (size_t j = 0; j < d; j += 2) {
                const size_t element = i / DP_PANEL * DP_PANEL * d + j * DP_PANEL + i % DP_PANEL * 2;
                const oracle_sum pair = oracle_dot(q + h * d + j, 1, panels + element, 1, 2, DP_BF16);
                sum.value += pair.value;
                sum.magnitude += pair.magnitude;
            }
            const double bound = ((double)d + 2) * (sum.magnitude * 0x1p-24 + FLT_TRUE_MIN);
            expect_near("score", h * out_stride + i, results[0][h * out_stride + i], sum.value, bound);
        }
        if (h + 1 < heads)
            expect_untouched("gap of out", results[0] + h * out_stride + n, (out_stride - n) * sizeof(float));
    }
    release_buffers();
}

START_TEST(scores_of_all_shapes)
{
    static const size_t dims[] = {2, 6, 8, 16, 64, 80, 126, 128, 256, 512};
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

TCase *scores_tests(void)
{
    TCase *const tests = tcase_create("scores");
    tcase_add_loop_test(tests, scores_of_all_shapes, 0, CONTENTS_COUNT);
    return tests;
}
