/* Token attention over rows of every type; of int8, whose elements have a rounding more, k and v are step * int8.
 * key_logits:      |error| <= (d / 8 + 8) 2^-24 |scale| sum_j |q_j k_j|: at most d / 8 additions in a lane, then the lanes
 * weighted_values: |error| <= (n + 3) 2^-24 (|acc_j| + sum_i |w_i v_ij|): the additions in sequence; int8: n + 4 */
#include "harness.h"
#include "oracle.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Rows as a kernel gets them: `stride` bytes apart, NaN in the gaps, in order or by index. */
typedef struct rows {
    unsigned char *data;
    uint32_t *index; /* NULL: in order */
    size_t bytes, stride, n, d;
    dp_type type;
} rows;

static rows make_rows(size_t n, size_t d, dp_type type, contents kind, int indexed)
{
    const size_t row = oracle_row_bytes(d, type), gap = random_below(2) ? random_below(40) * row_alignment(type) : 0;
    rows r = {.stride = row + gap, .n = n, .d = d, .type = type};
    const size_t stored = indexed ? n + random_below(20) + 1 : n;
    r.bytes = stored ? (stored - 1) * r.stride + row : 0;
    r.data = allocate(r.bytes);
    memset(r.data, 0xff, r.bytes);
    float x[DP_MAX_DIM];
    for (size_t i = 0; i < stored; i++) {
        fill(x, d, kind == SPECIAL && i % 3 ? ORDINARY : kind);
        oracle_store_row(r.data + i * r.stride, x, d, type);
    }
    if (indexed) {
        r.index = allocate(n * sizeof *r.index);
        for (size_t i = 0; i < n; i++) r.index[i] = (uint32_t)random_below(stored);
        if (n) /* the row at the end of the page is read */
            r.index[random_below(n)] = (uint32_t)(stored - 1);
    }
    return r;
}

static const void *row_of(const rows *r, size_t i)
{
    return r->data + (r->index ? r->index[i] : i) * r->stride;
}

/* The rows of a copy of the data, and `ahead` rows that may be fetched but not read. */
static dp_row *point_at(const rows *r, const unsigned char *data, size_t ahead)
{
    dp_row *const list = allocate((r->n + ahead) * sizeof *list);
    for (size_t i = 0; i < r->n; i++) list[i] = dp_row_at(data + ((const unsigned char *)row_of(r, i) - r->data));
    for (size_t i = 0; i < ahead; i++) list[r->n + i] = dp_row_at((const void *)(uintptr_t)(64 * i)); /* nobody's memory */
    return list;
}

static void check_key_logits(size_t heads, const rows *r, contents kind)
{
    const size_t d = r->d, n = r->n, out_stride = n + random_below(9);
    const size_t out_bytes = (heads ? (heads - 1) * out_stride + n : 0) * sizeof(float);
    const float scale = kind == WIDE ? 3e3f : 0.0883883f; /* 3e3: logits of 1e4 and more */
    float *const q = allocate(heads * d * sizeof *q);
    fill(q, heads * d, kind == SPECIAL ? ORDINARY : kind);

    float *results[2];
    for (size_t run = 0; run < 2; run++) {
        const size_t shift = run ? random_shift(4) : 0;
        results[run] = place(NULL, out_bytes, shift);
        const size_t ahead = run ? random_below(2 * n + 2) : 0;
        const void *const data = place(r->data, r->bytes, run ? random_shift(row_alignment(r->type)) : 0);
        kernels.key_logits[r->type](place(q, heads * d * sizeof *q, shift), heads, d, point_at(r, data, ahead), n,
                                    ahead, scale, results[run], out_stride);
    }
    expect_same("key_logits", results[0], results[1], out_bytes);
    for (size_t h = 0; h < heads; h++) {
        for (size_t i = 0; i < n; i++) {
            oracle_sum sum = {0, 0};
            for (size_t j = 0; j < d; j++) {
                const double term = q[h * d + j] * oracle_row_element(row_of(r, i), j, d, r->type);
                sum.value += term;
                sum.magnitude += fabs(term);
            }
            const double bound = ((double)d / 8 + 8) * (fabs(scale) * sum.magnitude * 0x1p-24 + FLT_TRUE_MIN);
            expect_near("logit", h * out_stride + i, results[0][h * out_stride + i], scale * sum.value, bound);
        }
        if (h + 1 < heads)
            expect_untouched("gap of out", results[0] + h * out_stride + n, (out_stride - n) * sizeof(float));
    }
}

static void check_weighted_values(size_t heads, const rows *r, contents kind)
{
    const size_t d = r->d, n = r->n, w_stride = n + random_below(9);
    const size_t w_count = heads ? (heads - 1) * w_stride + n : 0, acc_bytes = heads * d * sizeof(float);
    float *const w = allocate(w_count * sizeof *w), *const acc = allocate(acc_bytes);
    memset(w, 0xff, w_count * sizeof *w);
    for (size_t h = 0; h < heads; h++) fill(w + h * w_stride, n, kind == SPECIAL ? ORDINARY : kind);
    fill(acc, heads * d, ORDINARY);

    float *results[2];
    for (size_t run = 0; run < 2; run++) {
        const size_t shift = run ? random_shift(4) : 0;
        results[run] = place(acc, acc_bytes, shift);
        const size_t ahead = run ? random_below(2 * n + 2) : 0;
        const void *const data = place(r->data, r->bytes, run ? random_shift(row_alignment(r->type)) : 0);
        kernels.weighted_values[r->type](place(w, w_count * sizeof *w, shift), w_stride, heads,
                                         point_at(r, data, ahead), n, ahead, d, results[run]);
    }
    expect_same("weighted_values", results[0], results[1], acc_bytes);
    for (size_t h = 0; h < heads; h++)
        for (size_t j = 0; j < d; j++) {
            oracle_sum sum = {acc[h * d + j], fabs(acc[h * d + j])};
            for (size_t i = 0; i < n; i++) {
                const double term = w[h * w_stride + i] * oracle_row_element(row_of(r, i), j, d, r->type);
                sum.value += term;
                sum.magnitude += fabs(term);
            }
            const int whole = r->type == DP_INT8; /* numbers up to 128, times a weight that may be denormal */
            const double bound = ((double)n + 3 + whole) * (sum.magnitude * 0x1p-24 + (whole ? 128 : 1) * FLT_TRUE_MIN);
            expect_near("acc", h * d + j, results[0][h * d + j], sum.value, bound);
        }
}

static void check_rows(size_t heads, size_t n, size_t d, dp_type type, contents kind, int indexed)
{
    describe("rows %s heads %zu n %zu d %zu contents %d%s", type_name(type), heads, n, d, (int)kind,
             indexed ? " by index" : "");
    const rows r = make_rows(n, d, type, kind, indexed);
    check_key_logits(heads, &r, kind);
    check_weighted_values(heads, &r, kind);
    release_buffers();
}

static size_t random_heads(void)
{
    static const size_t heads[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33};
    return heads[random_below(sizeof heads / sizeof *heads)];
}

START_TEST(rows_of_every_dim)
{
    const dp_type type = (dp_type)_i;
    start_random();
    for (size_t d = 8; d <= DP_MAX_DIM; d += 8)
        for (int kind = 0; kind < CONTENTS_COUNT; kind++)
            check_rows(random_heads(), random_below(24), d, type, (contents)kind, (int)random_below(2));
}
END_TEST

START_TEST(rows_of_every_count)
{
    const dp_type type = (dp_type)_i;
    start_random();
    for (size_t n = 0; n <= 70; n++)
        for (int indexed = 0; indexed < 2; indexed++)
            check_rows(1 + n % 9, n, 8 * (1 + random_below(20)), type, ORDINARY, indexed);
    for (int indexed = 0; indexed < 2; indexed++) {
        check_rows(4, 300, 128, type, WIDE, indexed);
        check_rows(5, 129, 64, type, ORDINARY, indexed);
        check_rows(0, 5, 64, type, ORDINARY, indexed);
    }
}
END_TEST

START_TEST(rows_of_every_head_count)
{
    const dp_type type = (dp_type)_i;
    start_random();
    for (size_t heads = 1; heads <= 33; heads++)
        check_rows(heads, 1 + random_below(40), 8 * (1 + random_below(17)), type, ORDINARY, (int)(heads % 2));
}
END_TEST

TCase *rows_tests(void)
{
    TCase *const tests = tcase_create("rows");
    tcase_add_loop_test(tests, rows_of_every_dim, 0, DP_TYPE_COUNT);
    tcase_add_loop_test(tests, rows_of_every_count, 0, DP_TYPE_COUNT);
    tcase_add_loop_test(tests, rows_of_every_head_count, 0, DP_TYPE_COUNT);
    return tests;
}
