/* code_logits and sign_logits: exact, as their contracts say. */
#include "harness.h"
#include "oracle.h"

#include <string.h>

static void check_codes(size_t heads, size_t d, size_t n, contents kind, int extreme, size_t bits)
{
    const size_t bytes = d * bits / 8;
    const size_t out_stride = n + random_below(20);
    const size_t out_bytes = (heads ? (heads - 1) * out_stride + n : 0) * sizeof(float);
    int8_t *const q = allocate(heads * d);
    float *const factor = allocate(heads * sizeof *factor), *const steps = allocate(n * sizeof *steps);
    uint8_t *const codes = allocate(n * bytes);
    uint16_t *const step_bits = allocate(n * sizeof *step_bits);
    fill(factor, heads, kind);
    fill(steps, n, kind);
    for (size_t i = 0; i < n; i++) oracle_store(step_bits, i, steps[i], DP_BF16);
    for (size_t i = 0; i < heads * d; i++) /* the largest sums, too */
        q[i] = extreme ? (int8_t)(extreme * 127) : (int8_t)((int)random_below(255) - 127);
    for (size_t i = 0; i < n * bytes; i++) codes[i] = extreme ? 0xff : (uint8_t)random_below(256);
    float *results[2];
    for (size_t run = 0; run < 2; run++) {
        results[run] = place(NULL, out_bytes, run ? random_shift(4) : 0);
        (bits == 1 ? kernels.sign_logits : kernels.code_logits)(
            place(q, heads * d, run * random_shift(1)),
            place(factor, heads * sizeof *factor, run ? random_shift(4) : 0), heads, d,
            place(codes, n * bytes, run * random_shift(1)),
            place(step_bits, n * sizeof *step_bits, run ? random_shift(2) : 0), n, results[run], out_stride);
    }
    expect_same("logits", results[0], results[1], out_bytes);
    for (size_t h = 0; h < heads; h++) {
        for (size_t i = 0; i < n; i++) {
            long sum = 0;
            for (size_t j = 0; j < d; j++) {
                const unsigned byte = codes[i * bytes + (bits == 1 ? j / 8 : j % (d / 2))];
                sum += q[h * d + j] * (bits == 1 ? 2 * (long)(byte >> j % 8 & 1) - 1
                                                 : 2 * (long)(j < d / 2 ? byte & 15 : byte >> 4) - 15);
            }
            const float expected = factor[h] * (float)oracle_element(step_bits, i, DP_BF16) * (float)sum;
            expect_near("code logit", h * out_stride + i, results[0][h * out_stride + i], (double)expected, 0);
        }
        if (h + 1 < heads)
            expect_untouched("gap of out", results[0] + h * out_stride + n, (out_stride - n) * sizeof(float));
    }
    release_buffers();
}

START_TEST(codes_of_all_shapes)
{
    static const size_t dims[] = {8, 16, 24, 40, 64, 72, 96, 128, 136, 256, 264, 504, 512};
    start_random();
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        for (size_t heads = 0; heads <= 9; heads++) {
            const size_t n = random_below(4) ? random_below(70) : random_below(3);
            const int extreme = (int)random_below(5) - 2;
            for (size_t bits = 1; bits <= 4; bits += 3) {
                describe("%zu-bit logits heads %zu d %zu tokens %zu contents %d extreme %d", bits, heads, dims[i], n,
                         _i, extreme);
                check_codes(heads, dims[i], n, (contents)_i, extreme == 1 || extreme == -1 ? extreme : 0, bits);
            }
        }
}
END_TEST

TCase *codes_tests(void)
{
    TCase *const tests = tcase_create("codes");
    tcase_add_loop_test(tests, codes_of_all_shapes, 0, CONTENTS_COUNT);
    return tests;
}
