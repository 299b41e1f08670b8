/* table.c: see table.h. */
#include "table.h"

#include "kv/rows.h"

enum { BATCH = 128 /* rows per kernel call; as many are fetched meanwhile */ };

/* Rows first .. first + n - 1, or to the end; returns how many. */
static size_t point_at(const row_table *t, size_t first, size_t n, dp_row *rows)
{
    const size_t bytes = dp_row_bytes(t->type, t->dim);
    if (n > t->n - first) n = t->n - first;
    for (size_t i = 0; i < n; i++)
        rows[i] = dp_row_at((const char *)t->rows + (t->index ? t->index[first + i] : first + i) * bytes);
    return n;
}

void table_logits(const dp_kernels *kernels, const row_table *t, const float *q, size_t heads, float scale, float *out,
                  size_t out_stride)
{
    dp_row rows[2 * BATCH];
    for (size_t i = 0; i < t->n; i += BATCH) {
        const size_t listed = point_at(t, i, 2 * BATCH, rows), n = listed < BATCH ? listed : BATCH;
        kernels->key_logits[t->type](q, heads, t->dim, rows, n, listed - n, scale, out + i, out_stride);
    }
}

void table_values(const dp_kernels *kernels, const row_table *t, const float *w, size_t w_stride, size_t heads,
                  float *acc)
{
    dp_row rows[2 * BATCH];
    for (size_t i = 0; i < t->n; i += BATCH) {
        const size_t listed = point_at(t, i, 2 * BATCH, rows), n = listed < BATCH ? listed : BATCH;
        kernels->weighted_values[t->type](w + i, w_stride, heads, rows, n, listed - n, t->dim, acc);
    }
}
