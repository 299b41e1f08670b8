/* Scalar dense linear algebra: vectors, transposition, and the products of prefill attention. */
#include "scalar.h"

static void axpy(float *y, const float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static void scale(float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= a;
}

static float dot(const float *a, const float *b, size_t n)
{
    return dp_dot_interleaved(a, b, n);
}

static void transpose(float *dst, size_t dst_stride, const float *src, size_t src_stride, size_t rows, size_t cols)
{
    enum { BLOCK = 8 }; /* so many lines of dst stay in L1 while their elements are filled */
    for (size_t j0 = 0; j0 < cols; j0 += BLOCK)
        for (size_t i = 0; i < rows; i++)
            for (size_t j = j0; j < cols && j < j0 + BLOCK; j++)
                dst[j * dst_stride + i] = src[i * src_stride + j];
}

/* One row of C, `width` columns (a constant at the full tile), in registers over all of k. */
DP_INLINE void matmul_tile(const float *a, const float *b, size_t ldb, float *c, size_t width, size_t k, int accumulate)
{
    float sum[16];
    for (size_t j = 0; j < width; j++)
        sum[j] = accumulate ? c[j] : 0;
    for (size_t l = 0; l < k; l++)
        for (size_t j = 0; j < width; j++)
            sum[j] += a[l] * b[l * ldb + j];
    for (size_t j = 0; j < width; j++)
        c[j] = sum[j];
}

static void matmul(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t m, size_t n,
                   size_t k, int accumulate)
{
    for (size_t j = 0; j < n; j += 16)
        for (size_t i = 0; i < m; i++) {
            if (n - j >= 16)
                matmul_tile(a + i * lda, b + j, ldb, c + i * ldc + j, 16, k, accumulate);
            else
                matmul_tile(a + i * lda, b + j, ldb, c + i * ldc + j, n - j, k, accumulate);
        }
}

void dp_scalar_init_dense(dp_kernels *k)
{
    k->axpy = axpy;
    k->scale = scale;
    k->dot = dot;
    k->transpose = transpose;
    k->matmul = matmul;
}
