/* AVX2 dense linear algebra: vectors, transposition, and the products of prefill attention. */
#include "avx2.h"

static void axpy(float *y, const float *x, float a, size_t n)
{
    const __m256 factor = _mm256_set1_ps(a);
    for (size_t i = 0; i < n; i += 8) {
        const size_t left = n - i;
        dp_store_first(y + i, left, _mm256_fmadd_ps(factor, dp_load_first(x + i, left), dp_load_first(y + i, left)));
    }
}

static void scale(float *x, float a, size_t n)
{
    const __m256 factor = _mm256_set1_ps(a);
    for (size_t i = 0; i < n; i += 8)
        dp_store_first(x + i, n - i, _mm256_mul_ps(factor, dp_load_first(x + i, n - i)));
}

static float dot(const float *a, const float *b, size_t n)
{
    __m256 sum[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++)
        sum[v] = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++)
            sum[v] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * v), _mm256_loadu_ps(b + i + 8 * v), sum[v]);
    }
    for (; i < n; i += 8)
        sum[0] = _mm256_fmadd_ps(dp_load_first(a + i, n - i), dp_load_first(b + i, n - i), sum[0]);
    return dp_sum_lanes(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

/* 8 x 8: pairs, quads, then 128-bit halves change places. */
DP_INLINE void transpose_8(__m256 x[8])
{
    __m256 t[8];
    DP_UNROLL
    for (size_t i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    DP_UNROLL
    for (size_t i = 0; i < 8; i += 4) { /* x[i + c]: column 4 g + c of rows i .. i + 3 in half g */
        x[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        x[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        x[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        x[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    DP_UNROLL
    for (size_t c = 0; c < 4; c++) {
        t[c] = _mm256_permute2f128_ps(x[c], x[c + 4], 0x20);
        t[c + 4] = _mm256_permute2f128_ps(x[c], x[c + 4], 0x31);
    }
    DP_UNROLL
    for (size_t c = 0; c < 8; c++)
        x[c] = t[c];
}

static void transpose(float *dst, size_t dst_stride, const float *src, size_t src_stride, size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i += 8)
        for (size_t j = 0; j < cols; j += 8) {
            __m256 x[8];
            DP_UNROLL
            for (size_t r = 0; r < 8; r++)
                x[r] = i + r < rows ? dp_load_first(src + (i + r) * src_stride + j, cols - j) : _mm256_setzero_ps();
            transpose_8(x);
            DP_UNROLL
            for (size_t c = 0; c < 8; c++)
                if (j + c < cols)
                    dp_store_first(dst + (j + c) * dst_stride + i, rows - i, x[c]);
        }
}

/* Where the last vector of a tile has fewer than 8 columns, `edge` says how many; it is 8 (a constant) elsewhere. */
DP_INLINE __m256 load_column(const float *x, size_t v, size_t vectors, size_t edge)
{
    return v + 1 < vectors ? _mm256_loadu_ps(x + 8 * v) : dp_load_first(x + 8 * v, edge);
}

/* A tile of C in registers over all of k: `rows` x 8 * `vectors` (constants). */
DP_INLINE void matmul_tile(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t k,
                           int accumulate, size_t rows, size_t vectors, size_t edge)
{
    __m256 sum[6][2];
    DP_UNROLL
    for (size_t i = 0; i < rows; i++) {
        DP_UNROLL
        for (size_t v = 0; v < vectors; v++)
            sum[i][v] = accumulate ? load_column(c + i * ldc, v, vectors, edge) : _mm256_setzero_ps();
    }
    for (size_t l = 0; l < k; l++) {
        __m256 line[2];
        DP_UNROLL
        for (size_t v = 0; v < vectors; v++)
            line[v] = load_column(b + l * ldb, v, vectors, edge);
        DP_UNROLL
        for (size_t i = 0; i < rows; i++) {
            const __m256 factor = _mm256_set1_ps(a[i * lda + l]);
            DP_UNROLL
            for (size_t v = 0; v < vectors; v++)
                sum[i][v] = _mm256_fmadd_ps(factor, line[v], sum[i][v]);
        }
    }
    DP_UNROLL
    for (size_t i = 0; i < rows; i++) {
        DP_UNROLL
        for (size_t v = 0; v < vectors; v++)
            dp_store_first(c + i * ldc + 8 * v, v + 1 < vectors ? 8 : edge, sum[i][v]);
    }
}

/* All rows of C for `vectors` (a constant) vectors of columns. */
DP_INLINE void matmul_columns(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t m,
                              size_t k, int accumulate, size_t vectors, size_t edge)
{
    for (; m >= 6; m -= 6, a += 6 * lda, c += 6 * ldc)
        matmul_tile(a, lda, b, ldb, c, ldc, k, accumulate, 6, vectors, edge);
    switch (m) {
    case 1: matmul_tile(a, lda, b, ldb, c, ldc, k, accumulate, 1, vectors, edge); break;
    case 2: matmul_tile(a, lda, b, ldb, c, ldc, k, accumulate, 2, vectors, edge); break;
    case 3: matmul_tile(a, lda, b, ldb, c, ldc, k, accumulate, 3, vectors, edge); break;
    case 4: matmul_tile(a, lda, b, ldb, c, ldc, k, accumulate, 4, vectors, edge); break;
    case 5: matmul_tile(a, lda, b, ldb, c, ldc, k, accumulate, 5, vectors, edge); break;
    }
}

enum { COLUMNS = 16, DEPTH = 256 }; /* of B at a time: 16 KiB, half of L1 */

/* DEPTH x COLUMNS of B, one line after the other: rows of B that are a power of two apart share cache sets. */
static void pack(float *packed, const float *b, size_t ldb, size_t depth, size_t columns)
{
    for (size_t l = 0; l < depth; l++, b += ldb, packed += COLUMNS) {
        _mm256_store_ps(packed, dp_load_first(b, columns));
        if (columns > 8)
            _mm256_store_ps(packed + 8, dp_load_first(b + 8, columns - 8));
    }
}

/* Measured on one Cascade Lake core: 71 to 73 GFLOP/s for m 256, n 64 to 512, k 64 to 512. */
static void matmul(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t m, size_t n,
                   size_t k, int accumulate)
{
    _Alignas(32) float packed[DEPTH * COLUMNS];
    const int packs = m > 12; /* else B is read too few times */
    size_t l = 0;
    do { /* once for k = 0, too: C becomes 0 */
        const size_t depth = k - l < DEPTH ? k - l : DEPTH;
        for (size_t j = 0; j < n; j += COLUMNS) {
            const size_t columns = n - j < COLUMNS ? n - j : COLUMNS;
            const float *const a_l = a + l, *b_l = b + l * ldb + j;
            size_t b_stride = ldb;
            if (packs) {
                pack(packed, b_l, ldb, depth, columns);
                b_l = packed;
                b_stride = COLUMNS;
            }
            const int add = accumulate || l > 0;
            if (columns == 16)
                matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 2, 8);
            else if (columns > 8)
                matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 2, columns - 8);
            else
                matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 1, columns);
        }
        l += depth;
    } while (l < k);
}

void dp_avx2_init_dense(dp_kernels *k)
{
    k->axpy = axpy;
    k->scale = scale;
    k->dot = dot;
    k->transpose = transpose;
    k->matmul = matmul;
}
