/* NEON dense linear algebra: vectors, transposition, and the products of prefill attention. */
#include "neon.h"

static void axpy(float *y, const float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i += 4) {
        const size_t left = n - i;
        dp_store_first(y + i, left, vfmaq_n_f32(dp_load_first(y + i, left), dp_load_first(x + i, left), a));
    }
}

static void scale(float *x, float a, size_t n)
{
    for (size_t i = 0; i < n; i += 4)
        dp_store_first(x + i, n - i, vmulq_n_f32(dp_load_first(x + i, n - i), a));
}

static float dot(const float *a, const float *b, size_t n)
{
    float32x4_t sum[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++)
        sum[v] = vdupq_n_f32(0);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++)
            sum[v] = vfmaq_f32(sum[v], vld1q_f32(a + i + 4 * v), vld1q_f32(b + i + 4 * v));
    }
    for (; i < n; i += 4)
        sum[0] = vfmaq_f32(sum[0], dp_load_first(a + i, n - i), dp_load_first(b + i, n - i));
    return dp_sum_lanes(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
}

DP_INLINE float32x4_t pairs_of_lanes(float32x4_t a, float32x4_t b, int upper)
{
    const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
    return vreinterpretq_f32_f64(upper ? vtrn2q_f64(x, y) : vtrn1q_f64(x, y));
}

/* 4 x 4: single lanes, then pairs of lanes change places. */
DP_INLINE void transpose_4(float32x4_t x[4])
{
    const float32x4_t even_01 = vtrn1q_f32(x[0], x[1]), odd_01 = vtrn2q_f32(x[0], x[1]);
    const float32x4_t even_23 = vtrn1q_f32(x[2], x[3]), odd_23 = vtrn2q_f32(x[2], x[3]);
    x[0] = pairs_of_lanes(even_01, even_23, 0);
    x[1] = pairs_of_lanes(odd_01, odd_23, 0);
    x[2] = pairs_of_lanes(even_01, even_23, 1);
    x[3] = pairs_of_lanes(odd_01, odd_23, 1);
}

static void transpose(float *dst, size_t dst_stride, const float *src, size_t src_stride, size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i += 4)
        for (size_t j = 0; j < cols; j += 4) {
            float32x4_t x[4];
            DP_UNROLL
            for (size_t r = 0; r < 4; r++)
                x[r] = i + r < rows ? dp_load_first(src + (i + r) * src_stride + j, cols - j) : vdupq_n_f32(0);
            transpose_4(x);
            DP_UNROLL
            for (size_t c = 0; c < 4; c++)
                if (j + c < cols)
                    dp_store_first(dst + (j + c) * dst_stride + i, rows - i, x[c]);
        }
}

/* Where the last vector of a tile has fewer than 4 columns, `edge` says how many; it is 4 (a constant) elsewhere. */
DP_INLINE float32x4_t load_column(const float *x, size_t v, size_t vectors, size_t edge)
{
    return v + 1 < vectors ? vld1q_f32(x + 4 * v) : dp_load_first(x + 4 * v, edge);
}

/* A tile of C in registers over all of k: `rows` x 4 * `vectors` (constants). */
DP_INLINE void matmul_tile(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t k,
                           int accumulate, size_t rows, size_t vectors, size_t edge)
{
    float32x4_t sum[6][4];
    DP_UNROLL
    for (size_t i = 0; i < rows; i++) {
        DP_UNROLL
        for (size_t v = 0; v < vectors; v++)
            sum[i][v] = accumulate ? load_column(c + i * ldc, v, vectors, edge) : vdupq_n_f32(0);
    }
    for (size_t l = 0; l < k; l++) {
        float32x4_t line[4];
        DP_UNROLL
        for (size_t v = 0; v < vectors; v++)
            line[v] = load_column(b + l * ldb, v, vectors, edge);
        DP_UNROLL
        for (size_t i = 0; i < rows; i++) {
            DP_UNROLL
            for (size_t v = 0; v < vectors; v++)
                sum[i][v] = vfmaq_n_f32(sum[i][v], line[v], a[i * lda + l]);
        }
    }
    DP_UNROLL
    for (size_t i = 0; i < rows; i++) {
        DP_UNROLL
        for (size_t v = 0; v < vectors; v++)
            dp_store_first(c + i * ldc + 4 * v, v + 1 < vectors ? 4 : edge, sum[i][v]);
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
    for (size_t l = 0; l < depth; l++, b += ldb, packed += COLUMNS)
        for (size_t j = 0; j < columns; j += 4)
            vst1q_f32(packed + j, dp_load_first(b + j, columns - j));
}

static void matmul(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t m, size_t n,
                   size_t k, int accumulate)
{
    float packed[DEPTH * COLUMNS];
    const int packs = m > 12; /* else B is read too few times */
    size_t l = 0;
    do { /* once for k = 0, too: C becomes 0 */
        const size_t depth = k - l < DEPTH ? k - l : DEPTH;
        for (size_t j = 0; j < n; j += COLUMNS) {
            const size_t columns = n - j < COLUMNS ? n - j : COLUMNS, edge = columns - (columns - 1) / 4 * 4;
            const float *const a_l = a + l, *b_l = b + l * ldb + j;
            size_t b_stride = ldb;
            if (packs) {
                pack(packed, b_l, ldb, depth, columns);
                b_l = packed;
                b_stride = COLUMNS;
            }
            const int add = accumulate || l > 0;
            if (columns == COLUMNS)
                matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 4, 4);
            else if (columns > 12)
                matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 4, edge);
            else if (columns > 8)
                matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 3, edge);
            else if (columns > 4)
                matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 2, edge);
            else
                matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 1, edge);
        }
        l += depth;
    } while (l < k);
}

void dp_neon_init_dense(dp_kernels *k)
{
    k->axpy = axpy;
    k->scale = scale;
    k->dot = dot;
    k->transpose = transpose;
    k->matmul = matmul;
}
