/* Dense linear algebra.
 * axpy:      |error| <= 2 2^-24 (|y| + |a x|)
 * scale:     half an ulp: exactly the rounded product
 * dot:       |error| <= (n / 8 + 8) 2^-24 sum |a b|
 * transpose: exact
 * matmul:    |error| <= (k + 2) 2^-24 (|c| + sum |a b|) */
#include "harness.h"
#include "oracle.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

START_TEST(vectors_of_every_length)
{
    start_random();
    float x[600], y[600];
    for (size_t n = 0; n < 600; n += n < 150 ? 1 : 1 + random_below(60)) {
        const float a = random_uniform() * 3;
        const size_t bytes = n * sizeof *x;
        fill(x, n, (contents)_i);
        fill(y, n, _i == SPECIAL ? ORDINARY : (contents)_i);
        float *sums[2], *products[2], dots[2];
        for (size_t run = 0; run < 2; run++) {
            const size_t shift = run ? random_shift(4) : 0;
            describe("axpy, scale, dot of %zu, contents %d", n, _i);
            sums[run] = place(y, bytes, shift);
            products[run] = place(x, bytes, shift);
            kernels.axpy(sums[run], place(x, bytes, shift), a, n);
            kernels.scale(products[run], a, n);
            dots[run] = kernels.dot(place(x, bytes, shift), place(y, bytes, shift), n);
        }
        expect_same("axpy", sums[0], sums[1], bytes);
        expect_same("scale", products[0], products[1], bytes);
        expect_same("dot", dots, dots + 1, sizeof *dots);
        for (size_t i = 0; i < n; i++) {
            const double term = (double)a * x[i];
            expect_near("axpy", i, sums[0][i], y[i] + term, 0x1p-23 * (fabs(y[i]) + fabs(term)) + FLT_TRUE_MIN);
            expect_near("scale", i, products[0][i], (float)term, 0);
        }
        const oracle_sum sum = oracle_dot(x, 1, y, 1, n, DP_F32);
        expect_near("dot", 0, dots[0], sum.value,
                    ((double)n / 8 + 8) * (0x1p-24 * sum.magnitude + FLT_TRUE_MIN));
        release_buffers();
    }
}
END_TEST

START_TEST(transpose_of_all_shapes)
{
    start_random();
    for (size_t round = 0; round < 400; round++) {
        const size_t rows = random_below(round < 350 ? 40 : 150), cols = random_below(round < 350 ? 40 : 150);
        const size_t src_stride = cols + random_below(9), dst_stride = rows + random_below(9);
        describe("transpose of %zu x %zu, strides %zu %zu", rows, cols, src_stride, dst_stride);
        const size_t src_count = rows ? (rows - 1) * src_stride + cols : 0;
        const size_t dst_count = cols ? (cols - 1) * dst_stride + rows : 0;
        float *const data = allocate(src_count * sizeof *data);
        memset(data, 0xff, src_count * sizeof *data);
        for (size_t i = 0; i < rows; i++)
            fill(data + i * src_stride, cols, ORDINARY);
        const size_t shift = round % 2 ? random_shift(4) : 0;
        const float *const src = place(data, src_count * sizeof *src, shift);
        float *const dst = place(NULL, dst_count * sizeof *dst, shift);
        kernels.transpose(dst, dst_stride, src, src_stride, rows, cols);
        for (size_t j = 0; j < cols && rows; j++) {
            for (size_t i = 0; i < rows; i++)
                expect_near("transpose", j * dst_stride + i, dst[j * dst_stride + i], src[i * src_stride + j], 0);
            if (j + 1 < cols)
                expect_untouched("gap of dst", dst + j * dst_stride + rows, (dst_stride - rows) * sizeof *dst);
        }
        release_buffers();
    }
}
END_TEST

static float *make_matrix(size_t rows, size_t cols, size_t stride, contents kind, size_t *bytes)
{
    *bytes = (rows ? (rows - 1) * stride + cols : 0) * sizeof(float);
    float *const x = allocate(*bytes);
    memset(x, 0xff, *bytes);
    for (size_t i = 0; i < rows; i++)
        fill(x + i * stride, cols, kind);
    return x;
}

static void check_matmul(size_t m, size_t n, size_t k, int accumulate, contents kind)
{
    const size_t lda = k + random_below(9), ldb = n + random_below(9), ldc = n + random_below(9);
    describe("matmul m %zu n %zu k %zu lda %zu ldb %zu ldc %zu accumulate %d contents %d", m, n, k, lda, ldb, ldc,
             accumulate, (int)kind);
    size_t a_bytes, b_bytes, c_bytes;
    const float *const a = make_matrix(m, k, lda, kind == SPECIAL ? ORDINARY : kind, &a_bytes);
    const float *const b = make_matrix(k, n, ldb, kind, &b_bytes);
    const float *const c = make_matrix(m, n, ldc, ORDINARY, &c_bytes);
    float *results[2];
    for (size_t run = 0; run < 2; run++) {
        const size_t shift = run ? random_shift(4) : 0;
        results[run] = place(accumulate ? c : NULL, c_bytes, shift); /* else C is NaN beforehand */
        kernels.matmul(place(a, a_bytes, shift), lda, place(b, b_bytes, shift), ldb, results[run], ldc, m, n, k,
                       accumulate);
    }
    expect_same("matmul", results[0], results[1], c_bytes);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            oracle_sum sum = oracle_dot(a + i * lda, 1, b + j, ldb, k, DP_F32);
            if (accumulate) {
                sum.value += c[i * ldc + j];
                sum.magnitude += fabs(c[i * ldc + j]);
            }
            expect_near("C", i * ldc + j, results[0][i * ldc + j], sum.value,
                        ((double)k + 2) * (0x1p-24 * sum.magnitude + FLT_TRUE_MIN));
        }
        if (i + 1 < m)
            expect_untouched("gap of C", results[0] + i * ldc + n, (ldc - n) * sizeof(float));
    }
    release_buffers();
}

START_TEST(matmul_of_small_shapes)
{
    start_random();
    for (size_t m = 0; m <= 20; m++)
        for (size_t n = 0; n <= 150; n += 1 + random_below(9))
            check_matmul(m, n, random_below(40), (int)random_below(2), (contents)random_below(CONTENTS_COUNT));
}
END_TEST

START_TEST(matmul_of_blocks)
{
    start_random();
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        check_matmul(256, 256, 64, accumulate, ORDINARY);
        check_matmul(256, 512, 128, accumulate, WIDE);
        check_matmul(256, 64, 512, accumulate, ORDINARY);
        check_matmul(131, 193, 517, accumulate, WIDE);
        check_matmul(5, 70, 1000, accumulate, SPECIAL);
    }
    for (size_t round = 0; round < 60; round++)
        check_matmul(random_below(100), random_below(200), random_below(300), (int)random_below(2),
                     (contents)random_below(CONTENTS_COUNT));
}
END_TEST

TCase *dense_tests(void)
{
    TCase *const tests = tcase_create("dense");
    tcase_add_loop_test(tests, vectors_of_every_length, 0, CONTENTS_COUNT);
    tcase_add_test(tests, transpose_of_all_shapes);
    tcase_add_test(tests, matmul_of_small_shapes);
    tcase_add_test(tests, matmul_of_blocks);
    return tests;
}
