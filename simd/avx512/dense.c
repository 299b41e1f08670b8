/* AVX-512 dense linear algebra: vectors, transposition, and the products of prefill attention. */
#include "avx512.h"

static void axpy(float *y, const float *x, float a, size_t n)
{
    const __m512 factor = _mm512_set1_ps(a);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        const __m512 sum = _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(mask, x + i),
                                           _mm512_maskz_loadu_ps(mask, y + i));
        _mm512_mask_storeu_ps(y + i, mask, sum);
    }
}

static void scale(float *x, float a, size_t n)
{
    const __m512 factor = _mm512_set1_ps(a);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        _mm512_mask_storeu_ps(x + i, mask, _mm512_mul_ps(factor, _mm512_maskz_loadu_ps(mask, x + i)));
    }
}

static float dot(const float *a, const float *b, size_t n)
{
    __m512 sum[4];
    DP_UNROLL
    for (size_t v = 0; v < 4; v++)
        sum[v] = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        DP_UNROLL
        for (size_t v = 0; v < 4; v++)
            sum[v] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16 * v), _mm512_loadu_ps(b + i + 16 * v), sum[v]);
    }
    for (; i < n; i += 16) {
        const __mmask16 mask = dp_mask16(n - i);
        sum[0] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i), sum[0]);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

/* 16 x 16: pairs, quads, then 128-bit groups change places. */
DP_INLINE void transpose_16(__m512 x[16])
{
    __m512 t[16];
    DP_UNROLL
    for (size_t i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    DP_UNROLL
    for (size_t i = 0; i < 16; i += 4) { /* x[i + c]: column 4 g + c of rows i .. i + 3 in group g */
        x[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        x[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        x[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        x[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    DP_UNROLL
    for (size_t c = 0; c < 4; c++) {
        t[c] = _mm512_shuffle_f32x4(x[c], x[c + 4], 0x88);       /* groups 0, 2 of rows 0-3, 4-7 */
        t[c + 4] = _mm512_shuffle_f32x4(x[c], x[c + 4], 0xdd);   /* groups 1, 3 */
        t[c + 8] = _mm512_shuffle_f32x4(x[c + 8], x[c + 12], 0x88);
        t[c + 12] = _mm512_shuffle_f32x4(x[c + 8], x[c + 12], 0xdd);
    }
    DP_UNROLL
    for (size_t c = 0; c < 4; c++) {
        x[c] = _mm512_shuffle_f32x4(t[c], t[c + 8], 0x88);
        x[c + 4] = _mm512_shuffle_f32x4(t[c + 4], t[c + 12], 0x88);
        x[c + 8] = _mm512_shuffle_f32x4(t[c], t[c + 8], 0xdd);
        x[c + 12] = _mm512_shuffle_f32x4(t[c + 4], t[c + 12], 0xdd);
    }
}

static void transpose(float *dst, size_t dst_stride, const float *src, size_t src_stride, size_t rows, size_t cols)
{
    for (size_t i = 0; i < rows; i += 16)
        for (size_t j = 0; j < cols; j += 16) {
            const __mmask16 in = dp_mask16(cols - j), out = dp_mask16(rows - i);
            __m512 x[16];
            DP_UNROLL
            for (size_t r = 0; r < 16; r++)
                x[r] = i + r < rows ? _mm512_maskz_loadu_ps(in, src + (i + r) * src_stride + j) : _mm512_setzero_ps();
            transpose_16(x);
            DP_UNROLL
            for (size_t c = 0; c < 16; c++)
                if (j + c < cols)
                    _mm512_mask_storeu_ps(dst + (j + c) * dst_stride + i, out, x[c]);
        }
}

/* A tile of C in registers over all of k: `rows` x 16 * `vectors` (constants); `edge` is the mask of the last vector. */
DP_INLINE void matmul_tile(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t k,
                           int accumulate, size_t rows, size_t vectors, __mmask16 edge)
{
    __m512 sum[6][4];
    DP_UNROLL
    for (size_t i = 0; i < rows; i++) {
        DP_UNROLL
        for (size_t v = 0; v < vectors; v++)
            sum[i][v] = accumulate ? _mm512_maskz_loadu_ps(v + 1 < vectors ? 0xffff : edge, c + i * ldc + 16 * v)
                                   : _mm512_setzero_ps();
    }
    for (size_t l = 0; l < k; l++) {
        __m512 line[4];
        DP_UNROLL
        for (size_t v = 0; v < vectors; v++)
            line[v] = _mm512_maskz_loadu_ps(v + 1 < vectors ? 0xffff : edge, b + l * ldb + 16 * v);
        DP_UNROLL
        for (size_t i = 0; i < rows; i++) {
            const __m512 factor = _mm512_set1_ps(a[i * lda + l]);
            DP_UNROLL
            for (size_t v = 0; v < vectors; v++)
                sum[i][v] = _mm512_fmadd_ps(factor, line[v], sum[i][v]);
        }
    }
    DP_UNROLL
    for (size_t i = 0; i < rows; i++) {
        DP_UNROLL
        for (size_t v = 0; v < vectors; v++)
            _mm512_mask_storeu_ps(c + i * ldc + 16 * v, v + 1 < vectors ? 0xffff : edge, sum[i][v]);
    }
}

/* All rows of C for `vectors` (a constant) vectors of columns. */
DP_INLINE void matmul_columns(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t m,
                              size_t k, int accumulate, size_t vectors, __mmask16 edge)
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

enum { COLUMNS = 64, DEPTH = 256 }; /* of B at a time: 64 KiB, in L2; a tile of C is then written back seldom */

/* DEPTH x COLUMNS of B, one line after the other: rows of B that are a power of two apart share cache sets. */
static void pack(float *packed, const float *b, size_t ldb, size_t depth, size_t columns)
{
    for (size_t l = 0; l < depth; l++) {
        DP_UNROLL
        for (size_t v = 0; v < COLUMNS / 16; v++) {
            const __mmask16 mask = columns > 16 * v ? dp_mask16(columns - 16 * v) : 0;
            _mm512_store_ps(packed + l * COLUMNS + 16 * v, _mm512_maskz_loadu_ps(mask, b + l * ldb + 16 * v));
        }
    }
}

/* Measured on one Cascade Lake core (2.4 GHz under AVX-512: 154 GFLOP/s at most), oneDNN 2.6's sgemm in brackets:
 * m 256, n 256 to 512, k 64: 131 to 134 GFLOP/s (137 to 144); m 256, n 64 to 128, k 256 to 512: 133 to 138 (126 to 146). */
static void matmul(const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc, size_t m, size_t n,
                   size_t k, int accumulate)
{
    _Alignas(64) float packed[DEPTH * COLUMNS];
    const int packs = m > 12; /* else B is read too few times */
    size_t l = 0;
    do { /* once for k = 0, too: C becomes 0 */
        const size_t depth = k - l < DEPTH ? k - l : DEPTH;
        for (size_t j = 0; j < n; j += COLUMNS) {
            const size_t columns = n - j < COLUMNS ? n - j : COLUMNS, vectors = (columns + 15) / 16;
            const __mmask16 edge = dp_mask16(columns - (vectors - 1) * 16);
            const float *const a_l = a + l, *b_l = b + l * ldb + j;
            size_t b_stride = ldb;
            if (packs) {
                pack(packed, b_l, ldb, depth, columns);
                b_l = packed;
                b_stride = COLUMNS;
            }
            const int add = accumulate || l > 0;
            switch (vectors) {
            case 1: matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 1, edge); break;
            case 2: matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 2, edge); break;
            case 3: matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 3, edge); break;
            case 4: matmul_columns(a_l, lda, b_l, b_stride, c + j, ldc, m, depth, add, 4, edge); break;
            }
        }
        l += depth;
    } while (l < k);
}

void dp_avx512_init_dense(dp_kernels *k)
{
    k->axpy = axpy;
    k->scale = scale;
    k->dot = dot;
    k->transpose = transpose;
    k->matmul = matmul;
}
